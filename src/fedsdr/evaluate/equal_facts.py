"""Methods compared at equal learning: general knowledge kept at the same number of client facts.

Learning facts costs general knowledge in every method, so a comparison at equal rounds favours
the slower learner: a method that learns nothing forgets nothing. Here each method's training
curve is read where it first reaches the number of facts that both methods reach.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from fedsdr.core.statistics import Estimate, paired_difference

Curve = Sequence[Mapping[str, float]]  # the evaluations of one run, in the order of its rounds

LEARNT: Final = "client_facts"
KEPT: Final = "general"


def curve_points(rows: Sequence[Mapping[str, Any]]) -> Curve:
    """The curve in a run's log, without rounds that were evaluated on benchmarks only."""
    evaluations = (row.get("eval", {}) for row in rows)
    return [each for each in evaluations if LEARNT in each and KEPT in each]


def kept_at(curve: Curve, facts: float) -> float:
    """General knowledge where the curve first reaches `facts`, linear between evaluations.

    Raises ValueError where it never does.
    """
    pairs = [(point[LEARNT], point[KEPT]) for point in curve]
    if pairs[0][0] >= facts:
        return pairs[0][1]
    for (x0, y0), (x1, y1) in pairwise(pairs):
        if x0 < facts <= x1:
            return y0 + (y1 - y0) * (facts - x0) / (x1 - x0)
    raise ValueError(f"the curve never reaches {facts} {LEARNT}")


def kept_at_equal_facts(a: Curve, b: Curve) -> tuple[float, float, float]:
    """(facts, kept by a, kept by b) at the most facts that both curves reach."""
    facts = min(max(point[LEARNT] for point in curve) for curve in (a, b))
    return facts, kept_at(a, facts), kept_at(b, facts)


class EqualFacts(NamedTuple):
    """General knowledge kept where both methods know equally many client facts, all in percent.

    difference: kept by a minus kept by b, paired by seed. The others are means over seeds.
    learnt: whether, with every seed, both learnt some fact since their first evaluation; else the
        comparison is (in part) of the base model with itself.
    """

    difference: Estimate
    facts: float
    kept_a: float
    kept_b: float
    learnt: bool


def compare_at_equal_facts(a: Sequence[Curve], b: Sequence[Curve]) -> EqualFacts:
    """a, b: a curve a seed, in the same order of seeds."""
    pairs = list(zip(a, b, strict=True))
    facts, kept_a, kept_b = zip(*(kept_at_equal_facts(*pair) for pair in pairs), strict=True)
    starts = (max(curve[0][LEARNT] for curve in pair) for pair in pairs)
    learnt = all(found > start for found, start in zip(facts, starts, strict=True))
    at, mean_a, mean_b = (sum(column) / len(pairs) for column in (facts, kept_a, kept_b))
    return EqualFacts(paired_difference(kept_a, kept_b), at, mean_a, mean_b, learnt)
