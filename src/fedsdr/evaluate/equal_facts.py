"""Methods compared at equal learning: who kept more general knowledge for the same client facts.

Learning facts costs general knowledge in every method, so a comparison at equal rounds favours
the slower learner: a method that learns nothing forgets nothing. Here each method's training
curve is read where it first reaches the number of facts that both methods reach.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

Curve = Sequence[Mapping[str, float]]  # the evaluations of one run, in the order of its rounds

LEARNT: Final = "client_facts"
KEPT: Final = "general"


def curve_points(rows: Sequence[Mapping[str, Any]]) -> Curve:
    """The curve in a run's log; a round that was only put to benchmarks is no point of it."""
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
