"""Where a curve crosses zero."""

import pytest

from experiments.chapters.paradox import sign_change


@pytest.mark.parametrize(
    ("ys", "where"),
    [
        ([4.0, 2.0, -2.0], 1.5),
        ([-1.0, 3.0, 5.0], 0.25),
        ([3.0, 0.0, -3.0], 1.0),  # on a point
        ([3.0, -1.0, 1.0], 0.75),  # the first of two
        ([3.0, 0.0, 3.0], None),  # touched, not crossed
        ([1.0, 2.0, 3.0], None),
        ([0.0, 0.0, 0.0], None),
    ],
)
def test_a_crossing_is_where_the_line_through_the_points_changes_its_sign(ys, where):
    assert sign_change([0.0, 1.0, 2.0], ys) == where
