"""Where a curve crosses zero."""

from collections.abc import Sequence
from itertools import pairwise


def sign_change(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """The first x, of rising ones, at which the line through the points changes its sign; None if
    it never does. Points at zero have no sign: what counts is the change around them."""
    signed = [(x, y) for x, y in zip(xs, ys, strict=True) if y]
    for (a, before), (b, after) in pairwise(signed):
        if (before > 0) != (after > 0):
            return a + (b - a) * before / (before - after)
    return None
