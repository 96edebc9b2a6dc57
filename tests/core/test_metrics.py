"""Means merge by addition, in any order and grouping, and are divided last."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.core.metrics import Mean, merge_all, metric_values

# Whole numbers add up exactly in floating point, so equality can be asked for.
means = st.builds(Mean, st.integers(-1000, 1000).map(float), st.integers(0, 50).map(float))
metrics = st.dictionaries(st.sampled_from("abc"), means)


@settings(deadline=None)
@given(means, means, means)
def test_merging_is_associative_and_commutative(a, b, c):
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(Mean(0.0, 0.0)) == a


@settings(deadline=None)
@given(metrics, metrics, metrics)
def test_merging_in_groups_changes_nothing(a, b, c):
    assert merge_all([a, b, c]) == merge_all([merge_all([a, b]), c])
    assert merge_all([a, b, c]) == merge_all([c, b, a])
    assert merge_all([a]) == a


def test_a_merged_mean_is_that_of_all_examples():
    small, large = [1.0, 2.0], [4.0, 5.0, 6.0, 6.0]
    merged = merge_all([{"x": Mean(sum(part), len(part))} for part in (small, large)])
    assert merged["x"].value == pytest.approx(24 / 6)  # the mean of the means is 3.375


def test_metrics_are_merged_name_by_name():
    merged = merge_all([{"x": Mean(1, 1), "y": Mean(2, 4)}, {"x": Mean(3, 1)}, {}])
    assert merged == {"x": Mean(4, 2), "y": Mean(2, 4)}


def test_inputs_are_not_changed():
    part = {"x": Mean(1, 1)}
    merge_all([part, {"x": Mean(2, 2), "y": Mean(0, 1)}])
    assert part == {"x": Mean(1, 1)}


def test_values_are_sorted_and_leave_out_what_nobody_measured():
    shown = metric_values({"z": Mean(3, 2), "a": Mean(0, 1), "none": Mean(0, 0)})
    assert list(shown.items()) == [("a", 0.0), ("z", 1.5)]
    assert Mean(0, 0).value == 0.0
