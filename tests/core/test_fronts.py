"""Which points are on a Pareto front."""

import pytest

from fedsdr.core.statistics import non_dominated


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1, 1)], [True]),
        ([(1, 3), (2, 2), (3, 1), (1, 2), (2, 1)], [True, True, True, False, False]),
        ([(1, 1), (1, 1)], [True, True]),  # equal points do not dominate each other
        ([(1, 2), (1, 3)], [False, True]),
        ([(0, 0, 9), (5, 5, 8), (5, 5, 7)], [True, True, False]),
    ],
)
def test_a_point_is_on_the_front_unless_another_is_better(points, front):
    assert non_dominated(points) == front
