"""What a model card says of the method: each stream's part in it."""

from fedsdr.export.card import method_choices
from fedsdr.recipe.load import parse_recipe

LAB = {"model": {"path": "lab"}}


def test_the_card_says_what_each_stream_learnt_from():
    paper = method_choices(parse_recipe({**LAB, "method": "paper"}))
    new = method_choices(parse_recipe({**LAB, "method": "fedsdr2"}))
    streams = ("method", "local.rectify_targets", "local.smoothing_targets")
    assert [paper[key] for key in streams] == ["paper", "raw", "distilled"]
    assert [new[key] for key in streams] == ["fedsdr2", "distilled", "raw"]
    assert {*new} - {*paper} == {"distill.contrast", "rehearsal.share"}


def test_what_plays_no_part_is_left_out():
    raw = method_choices(
        parse_recipe({**LAB, "federation": {"targets": "raw"}, "distill": {"contrast": 1.0}})
    )
    assert not {"method", "local.rectify_targets", "distill.contrast", "rehearsal.share"} & {*raw}
