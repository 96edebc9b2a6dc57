"""What a rewriting prompt is: a text with two placeholders, or the name of one in prompts.toml."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Final

PLACEHOLDERS: Final = ("{instruction}", "{response}")
PLACEHOLDER_PATTERN: Final = re.compile(r"\{[^\W\d]\w*\}")


@cache
def shipped_prompts() -> Mapping[str, str]:
    """The prompts of prompts.toml in its order, name -> text."""
    text = (resources.files("fedsdr.recipe.sections") / "prompts.toml").read_text("utf-8")
    return tomllib.loads(text)


def resolve_prompt(prompt: str) -> str:
    """The text of a prompt that is given by its name, or as the text itself.

    Raises `ValueError` for a name that there is not, and for placeholders that are missing or
    unknown.
    """
    if text := shipped_prompts().get(prompt):
        return text
    found = PLACEHOLDER_PATTERN.findall(prompt)
    if re.fullmatch(r"[\w-]+", prompt):
        names = ", ".join(shipped_prompts())
        raise ValueError(f"no such prompt: choose from {names}, or write it out: {_EXAMPLE}")
    if missing := [place for place in PLACEHOLDERS if place not in found]:
        raise ValueError(f"the prompt must contain {' and '.join(missing)}, as in {_EXAMPLE}")
    if unknown := [place for place in found if place not in PLACEHOLDERS]:
        raise ValueError(
            f"the prompt has {unknown[0]}, and only {' and '.join(PLACEHOLDERS)} are filled in: "
            "remove it"
        )
    return prompt


_EXAMPLE: Final = '"Question: {instruction} Answer: {response} Say it in your own words."'
