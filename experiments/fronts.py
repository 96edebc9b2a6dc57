"""Pareto fronts: which of several points no other is better than."""

from collections.abc import Sequence

Point = Sequence[float]


def non_dominated(points: Sequence[Point]) -> list[bool]:
    """Of each point, whether no other is at least as large in all coordinates and larger in one."""
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(a: Point, b: Point) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)
