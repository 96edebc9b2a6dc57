"""Verdicts: conditions by their intervals, and claims by their conditions."""

import pytest

from fedsdr.core.statistics import Estimate
from fedsdr.evaluate.verdicts import Claim, Condition


def interval(low: float, high: float, n: int = 5) -> Estimate:
    return {"n": n, "mean": (low + high) / 2, "low": low, "high": high}


UP, DOWN, OPEN = interval(1, 2), interval(-2, -1), interval(-1, 2)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([UP], "holds"),
        ([UP, UP], "holds"),
        ([UP, OPEN], "holds in part"),
        ([UP, DOWN], "holds in part"),
        ([OPEN, DOWN], "fails"),
        ([DOWN], "fails"),
        ([OPEN], "open"),
        ([OPEN, None], "open"),
        ([interval(1, 2, n=2)], "open"),
        ([{"n": 1, "mean": 5.0, "low": None, "high": None}], "open"),
        ([], "open"),
    ],
)
def test_a_claim_is_judged_by_all_of_its_conditions(differences, verdict):
    assert Claim("it is so", [Condition("a - b", each) for each in differences]).verdict == verdict


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([UP, UP], "holds"),
        ([UP, OPEN], "holds in part"),
        ([UP, UP, DOWN], "fails"),
        ([OPEN], "open"),
    ],
)
def test_what_is_said_of_each_is_refuted_by_one(differences, verdict):
    claim = Claim("all do", [Condition("a - b", each) for each in differences], each=True)
    assert claim.verdict == verdict


def test_conditions_are_counted():
    conditions = [Condition("a - b", each) for each in (UP, OPEN, DOWN, OPEN)]
    assert Claim("all do", conditions).counts == "1 holds, 1 fails, 2 open"
    assert Claim("all do", conditions[:1] * 2).counts == "2 hold"


def test_a_condition_may_ask_for_less():
    assert Condition("a - b", DOWN, positive=False).verdict == "holds"
    assert Condition("a - b", UP, positive=False).verdict == "fails"
