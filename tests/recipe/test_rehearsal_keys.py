"""Keys of rehearsal and of contrastive rewriting that are refused, with what to do."""

import pytest

from fedsdr.core.errors import UserError
from fedsdr.recipe.load import parse_recipe
from fedsdr.recipe.sections.rehearsal import Rehearsal

LAB = {"model": {"path": "lab"}}


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        ({**LAB, "rehearsal": {"share": 1.0}}, ["rehearsal.share = 1.0", "less than 1"]),
        (
            {**LAB, "rehearsal": {"share": 0.05}, "local": {"batch_size": 1}},
            ["0.05 of local.batch_size = 1 leaves no place", "raise local.batch_size"],
        ),
        ({**LAB, "rehearsal": {"share": 0.9}, "local": {"batch_size": 4}}, ["lower the share"]),
        (
            {**LAB, "rehearsal": {"share": 0.5}, "federation": {"loss": "on_policy"}},
            ["on_policy samples its own", "set it to 0"],
        ),
        (
            {"model": {"path": "lab", "thinking": "on"}, "rehearsal": {"share": 0.5}},
            ["answers without thoughts", 'model.thinking = "off"'],
        ),
        ({**LAB, "distill": {"contrast_floor": 0}}, ["contrast_floor = 0", "greater than 0"]),
        ({**LAB, "distill": {"contrast_floor": 1.1}}, ["contrast_floor = 1.1"]),
    ],
)
def test_keys_that_are_refused(tables, parts):
    with pytest.raises(UserError) as error:
        parse_recipe(tables)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    ("share", "batch_size", "examples"), [(0.0, 8, 0), (0.2, 32, 6), (0.25, 8, 2), (0.5, 5, 2)]
)
def test_a_share_is_rounded_to_whole_examples(share, batch_size, examples):
    assert Rehearsal(share=share).examples(batch_size) == examples
    assert parse_recipe({**LAB, "rehearsal": {"share": share}, "local": {"batch_size": batch_size}})
