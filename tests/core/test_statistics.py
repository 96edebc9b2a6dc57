"""Confidence intervals: against scipy, and one worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsdr.core.statistics import (
    bootstrap_interval,
    metric_intervals,
    normal_interval,
    paired_difference,
    t_interval,
    wilson_interval,
)

runs = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


@settings(deadline=None)
@given(runs)
def test_the_interval_is_students(values):
    sem = stats.sem(values)
    assume(sem > 1e-6)
    got = t_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=sem)
    assert got["n"] == len(values)
    assert got["mean"] == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert got["low"] == pytest.approx(low, rel=1e-9, abs=1e-9)
    assert got["high"] == pytest.approx(high, rel=1e-9, abs=1e-9)


def test_an_interval_worked_by_hand():
    """1, 2, 3: mean 2, variance 1, standard error 1/sqrt(3); the table's t(0.975, 2) is 4.303."""
    got = t_interval([1.0, 2.0, 3.0])
    half = 4.3027 / math.sqrt(3)
    assert got["mean"] == 2
    assert got["low"] == pytest.approx(2 - half, abs=1e-4)
    assert got["high"] == pytest.approx(2 + half, abs=1e-4)


def test_one_run_has_no_interval():
    assert t_interval([3.5]) == {"n": 1, "mean": 3.5, "low": None, "high": None}


def test_equal_runs_have_an_interval_of_a_point():
    assert t_interval([2.0, 2.0]) == {"n": 2, "mean": 2, "low": 2, "high": 2}


def test_a_paired_difference_cancels_what_the_seeds_do():
    seeds = [10.0, 50.0, 90.0]
    got = paired_difference([s + 2 for s in seeds], seeds)
    assert got == {"n": 3, "mean": 2, "low": 2, "high": 2}
    assert paired_difference(seeds, [s + 2 for s in seeds])["mean"] == -2


def test_runs_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 2.0], [1.0])


def test_estimates_go_metric_by_metric_over_the_runs_that_have_it():
    got = metric_intervals([{"b": 1.0, "a": 4.0}, {"b": 3.0}])
    assert list(got) == ["a", "b"]
    assert got["a"] == {"n": 1, "mean": 4.0, "low": None, "high": None}
    assert got["b"] == t_interval([1.0, 3.0])


def test_wilson_by_hand():
    """Wilson (1927) at z = 1.95996: for 8 of 10, (0.4902, 0.9433)."""
    assert wilson_interval(0.8, 10) == pytest.approx((0.8, 0.49016, 0.94331), abs=1e-4)
    assert wilson_interval(0.0, 10).low == 0
    assert wilson_interval(0.0, 10).high > 0.2
    assert wilson_interval(1.0, 10).high == 1


def test_a_bootstrap_interval_of_a_mean_is_near_students():
    values = np.random.default_rng(3).normal(10, 2, 400)
    low, high = bootstrap_interval((values,), lambda x, axis: np.mean(x, axis=axis))
    wanted = t_interval(values.tolist())
    assert low == pytest.approx(wanted["low"], abs=0.03)
    assert high == pytest.approx(wanted["high"], abs=0.03)


def test_samples_are_resampled_together():
    """Each pair adds up to 1, so a ratio of sums that is taken in pairs cannot vary."""
    won = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    low, high = bootstrap_interval(
        (won, 1 - won), lambda x, y, axis: np.sum(x + y, axis=axis) / x.shape[axis]
    )
    assert (low, high) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0]])
def test_samples_that_do_not_vary_have_no_bootstrap_interval(values):
    found = bootstrap_interval((np.array(values),), lambda x, axis: np.mean(x, axis=axis))
    assert found == (None, None)


def test_a_normal_interval_worked_by_hand():
    """Resampled values 1 and 3 have a standard deviation of sqrt(2)."""
    half = 1.96 * math.sqrt(2)
    assert normal_interval(5.0, [1.0, 3.0]) == pytest.approx((5.0, 5 - half, 5 + half))
    assert normal_interval(5.0, [2.0, 2.0]) == (5.0, None, None)
    assert normal_interval(5.0, [2.0, math.nan]) == (5.0, None, None)
