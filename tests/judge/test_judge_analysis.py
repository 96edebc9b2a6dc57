"""Win rates, intervals and position bias from verdicts; by hand, and on simulated judges."""

import random

import pytest
from scipy import stats

from fedsdr.judge.analysis import JudgedComparison, pairwise_result, position_bias, score_result
from fedsdr.judge.verdicts import read_choice, read_score

HAND = [
    JudgedComparison("1", "math", "first", "second"),  # A in both orders
    JudgedComparison("2", "math", "first", "first"),  # contradiction: the first place twice
    JudgedComparison("3", "code", "second", "first"),  # B in both
    JudgedComparison("4", "code", "first", "tie"),  # half a contradiction
    JudgedComparison("5", "code", "first", None),  # unreadable
    JudgedComparison("6", "code", identical=True),
]


def judge(draw, bias, quality=0.0):
    """A noisy judge: it compares qualities with a bonus for the first place."""
    gap = quality + draw.gauss(0, 1) + bias
    return "tie" if abs(gap) < 0.3 else "first" if gap > 0 else "second"


def simulate(seed, bias, questions=80, turns=2):
    draw = random.Random(seed)
    rows = []
    for q in range(questions):
        quality = draw.gauss(0.4, 1)  # A is better in truth
        for _ in range(turns):
            ab, ba = judge(draw, bias, quality), judge(draw, bias, -quality)
            rows.append(JudgedComparison(str(q), "c", ab, ba))
    return rows


def test_a_hand_worked_table():
    result = pairwise_result(HAND)
    assert result["verdicts"] == {"first": 6, "second": 2, "tie": 1, "malformed": 1}
    assert result["outcomes"] == {
        "a": 1, "b": 1, "tie": 3, "identical": 1, "inconsistent": 2, "unusable": 1,
    }  # fmt: skip
    assert result["win_rate"]["mean"] == pytest.approx((1 + 0.5 + 0 + 0.5 + 0.5) / 5)
    assert result["win_rate"]["n"] == 5
    assert result["categories"]["math"]["mean"] == pytest.approx(0.75)
    assert result["categories"]["code"]["mean"] == pytest.approx(1 / 3)
    assert result["agreement"] == {"n": 4, "share": 0.5}
    place = result["position"]
    assert (place["first"], place["decided"], place["rate"]) == (5, 7, pytest.approx(5 / 7))
    assert (place["questions_for_first"], place["questions_for_second"]) == (2, 0)
    assert place["p"] == pytest.approx(0.5)
    assert not place["biased"]


@pytest.mark.parametrize(("bias", "side"), [(0.8, 1), (-0.8, -1)])
def test_bias_to_a_place_is_found(bias, side):
    place = position_bias(simulate(1, bias))
    assert place["biased"]
    assert (place["rate"] - 0.5) * side > 0
    assert (place["low"] - 0.5) * side > 0
    assert (place["high"] - 0.5) * side > 0


def test_a_fair_judge_is_rarely_called_biased():
    """The test is of level 5 %: more alarms than this have a probability below a thousandth."""
    alarms = sum(position_bias(simulate(seed, 0.0, 40))["biased"] for seed in range(60))
    assert alarms <= stats.binom.ppf(0.999, 60, 0.05)


def test_a_perfectly_consistent_judge_has_no_bias():
    rows = [JudgedComparison(str(i), "", "first", "second") for i in range(30)]
    place = position_bias(rows)
    assert (place["rate"], place["p"], place["biased"]) == (0.5, None, False)


def test_turns_of_a_question_are_no_further_evidence():
    """Thirty copies of each verdict change neither the interval nor the test."""
    rows = simulate(3, 0.3, 30, 1)
    once, often = pairwise_result(rows), pairwise_result(rows * 30)
    assert often["win_rate"] == once["win_rate"]
    assert often["position"]["p"] == once["position"]["p"]
    assert often["position"]["low"] == pytest.approx(once["position"]["low"])


def test_the_interval_covers_the_truth():
    """Simulated A whose win rate is known by a large sample, 40 questions at a time."""
    large = [row.winner for row in simulate(99, 0.0, 8000, 1)]
    truth = (large.count("a") + 0.5 * large.count("tie")) / len(large)
    covered = 0
    for seed in range(100, 130):
        rate = pairwise_result(simulate(seed, 0.0, 40, 1))["win_rate"]
        covered += rate["low"] <= truth <= rate["high"]
    assert covered >= 25


def test_who_wins_everything_has_the_exact_interval():
    rate = pairwise_result([JudgedComparison(str(i), "", "first", "second") for i in range(20)])[
        "win_rate"
    ]
    assert rate["mean"] == 1
    assert rate["low"] == pytest.approx(0.025 ** (1 / 20))  # Clopper and Pearson, by hand
    assert rate["high"] == 1


def test_nothing_usable_gives_no_number():
    result = pairwise_result([JudgedComparison("1", "math", None, "first")])
    assert result["win_rate"] is None
    assert result["position"]["rate"] is None
    assert result["categories"] == {}
    assert score_result([("1", "", None)])["score"] is None


def test_scores_are_averaged_within_a_question_first():
    rows = [("1", "math", 2), ("1", "math", 4), ("2", "code", 9), ("2", "code", None)]
    result = score_result(rows)
    assert result["score"]["mean"] == pytest.approx((3 + 9) / 2)
    assert result["verdicts"]["malformed"] == 1
    assert result["verdicts"]["scores"]["9"] == 1
    assert result["categories"]["math"] == {"n": 1, "mean": 3.0, "low": None, "high": None}


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A is right. [[A]]", "first"),
        ("[[B]]", "second"),
        ("**[[ C ]]**", "tie"),
        ("[[A]] ... so [[A]]", "first"),
        ("[[A]] or [[B]]", None),
        ("[[A]] but [[7]]", None),
        ("[A]", None),
        ("[[a]]", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_choices_are_read_strictly(reply, choice):
    assert read_choice(reply) == choice


@pytest.mark.parametrize(
    ("reply", "score"),
    [("[[7]]", 7), ("Rating: [[10]]", 10), ("[[0]]", None), ("[[11]]", None), ("[[7.5]]", None),
     ("7", None), ("[[A]]", None), ("[[rating]]", None)],
)  # fmt: skip
def test_scores_are_read_strictly(reply, score):
    assert read_score(reply) == score
