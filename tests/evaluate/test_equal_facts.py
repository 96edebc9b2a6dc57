"""Reading training curves at equal learning."""

import pytest

from fedsdr.evaluate.claims import judge_at_equal_facts, judge_claims
from fedsdr.evaluate.equal_facts import (
    compare_at_equal_facts,
    curve_points,
    kept_at,
    kept_at_equal_facts,
)
from fedsdr.workflows.summary import curves_of
from support.tiny_recipe import write_rows


def curve(*points):
    return [{"client_facts": facts, "general": general} for facts, general in points]


FAST = curve((40, 100), (60, 90), (100, 50))
SLOW = curve((40, 100), (50, 99), (70, 97))


@pytest.mark.parametrize(
    ("facts", "general"),
    [(30, 100), (40, 100), (50, 95), (60, 90), (70, 80), (100, 50)],
)
def test_a_curve_is_read_linearly_between_evaluations(facts, general):
    assert kept_at(FAST, facts) == pytest.approx(general)


def test_the_first_crossing_counts_where_a_curve_falls_back():
    assert kept_at(curve((40, 100), (60, 90), (50, 80), (70, 70)), 55) == pytest.approx(92.5)


def test_facts_never_reached_are_an_error():
    with pytest.raises(ValueError, match="never reaches 101"):
        kept_at(FAST, 101)


def test_both_are_read_at_the_most_facts_that_both_reach():
    assert kept_at_equal_facts(FAST, SLOW) == pytest.approx((70, 80, 97))
    assert kept_at_equal_facts(SLOW, FAST) == pytest.approx((70, 97, 80))


def test_a_slow_learner_does_not_win_by_learning_nothing():
    """It keeps all it had, but at its few facts so does the other."""
    idle = curve((40, 100), (40, 100))
    assert kept_at_equal_facts(idle, FAST) == pytest.approx((40, 100, 100))


def test_the_verdict_at_equal_facts_needs_an_interval_without_zero():
    slower = [SLOW, curve((40, 100), (70, 96)), curve((40, 100), (70, 98))]
    verdict = judge_at_equal_facts("A", "B", slower, [FAST] * 3)
    assert verdict["claim"] == "A keeps more general knowledge than B at equal client facts"
    assert verdict["verdict"] == "holds"
    assert "Both at 70.0 client facts: general knowledge 97.0 against 80.0" in verdict["words"]
    assert judge_at_equal_facts("B", "A", [FAST] * 3, slower)["verdict"] == "fails"
    assert judge_at_equal_facts("A", "A", slower, slower)["verdict"] == "open"


def test_claims_at_equal_facts_need_both_methods_curves():
    curves = {"fedavg": [FAST], "fedsd_verified": [SLOW]}
    claims = [verdict["claim"] for verdict in judge_claims({}, "fedsdr", curves)]
    assert claims == [
        "FedSD with verified rewrites keeps more general knowledge than FedAvg on raw data "
        "at equal client facts"
    ]


def test_a_round_that_was_only_put_to_benchmarks_is_no_point_of_a_curve():
    known, asked = {"client_facts": 40.0, "general": 100.0}, {"crass": 25.0}
    rows = [{"round": 0, "eval": known | asked}, {"round": 1}, {"round": 2, "eval": asked}]
    assert curve_points(rows) == [known | asked]
    assert curve_points(rows[1:]) == []


def test_a_method_without_a_global_model_has_no_curve(tmp_path):
    """Its log holds the base model's scores, its results only those of the clients' own models."""
    scores = {"client_facts": 40.0, "general": 100.0}
    write_rows(tmp_path / "metrics.jsonl", [{"round": 0, "eval": scores}])
    results = {"fedavg": [scores], "fedsa": [{"personal_general": 90.0}]}
    curves = curves_of(results, {name: [tmp_path] for name in results})
    assert curves == {"fedavg": [[scores]]}


@pytest.mark.parametrize(("second", "learnt"), [(FAST, True), (curve((40, 100), (40, 99)), False)])
def test_a_seed_that_learnt_nothing_makes_the_comparison_one_of_the_base_model(second, learnt):
    found = compare_at_equal_facts([FAST, FAST], [SLOW, second])
    assert found.learnt is learnt
    assert found.difference["n"] == 2


def test_means_at_equal_facts_are_over_seeds():
    found = compare_at_equal_facts([FAST, FAST], [SLOW, curve((40, 100), (60, 94))])
    # 70 facts: 80 against 97; 60 facts: 90 against 94
    assert (found.facts, found.kept_a, found.kept_b) == pytest.approx((65, 85, 95.5))
    assert found.difference["mean"] == pytest.approx(-10.5)
