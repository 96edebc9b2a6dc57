"""Rewriting prompts by name or as texts, and mistakes in them."""

import re

import pytest

from fedsdr.core.errors import UserError
from fedsdr.recipe.load import load_recipe, parse_recipe, to_toml
from fedsdr.recipe.sections.prompts import resolve_prompt, shipped_prompts

LAB = {"model": {"path": "lab"}}


def prompt_of(**distill: str) -> str:
    return parse_recipe({**LAB, "distill": distill}).distill.prompt


def test_shipped_prompts_ask_with_both_texts_and_are_eight_at_least():
    prompts = shipped_prompts()
    assert len(set(prompts.values())) == len(prompts) >= 8
    for text in prompts.values():
        assert set(re.findall(r"\{.*?\}", text)) == {"{instruction}", "{response}"}


def test_sdfts_prompt_is_its_authors():
    """ "alpaca_distill_using" of github.com/sail-sg/sdft, src/llmtuner/data/template.py."""
    assert shipped_prompts()["sdft"] == (
        "Below are an instruction that describes a task along with a reference answer. Using the "
        "reference answer as a guide, write your own response.\n\n### Instruction:\n{instruction}"
        "\n\n### Reference Answer:\n{response}\n\n### Response:\n"
    )


def test_a_recipe_holds_the_text_of_a_prompt_that_it_names():
    """So a later version's prompts of the same name do not change what a run goes on with."""
    assert prompt_of(prompt="sdft") == shipped_prompts()["sdft"]
    assert prompt_of() in shipped_prompts().values()
    written = to_toml(parse_recipe({**LAB, "distill": {"prompt": "sdft"}}))
    assert "### Reference Answer" in written
    assert (
        prompt_of(prompt="  {response} for {instruction}\n") == "  {response} for {instruction}\n"
    )


def test_a_file_names_one(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[model]\npath = "lab"\n[distill]\nprompt = "brief"\n', encoding="utf-8")
    assert load_recipe(path).distill.prompt == shipped_prompts()["brief"]
    changed = load_recipe(path, ["distill.prompt=sdft"])
    assert changed.distill.prompt == shipped_prompts()["sdft"]


def test_braces_that_are_no_placeholders_stay():
    text = 'As {"answer": ...} or {} or { x }: {instruction} {response}'
    assert resolve_prompt(text) == text


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("sdff", ["'sdff'", "no such prompt", "sdft", "brief", "{instruction}"]),
        ("", ["must contain {instruction} and {response}"]),
        ("{instruction} rewrite it", ["must contain {response}", "Question: "]),
        ("{instruction} {response} {gold}", ["has {gold}", "only {instruction} and {response}"]),
        ("{Instruction} {response}", ["must contain {instruction}"]),
    ],
)
def test_mistakes(prompt, parts):
    with pytest.raises(UserError, match=r"^recipe: distill\.prompt = ") as caught:
        prompt_of(prompt=prompt)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)
