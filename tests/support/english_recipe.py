"""A recipe of the English lab on a random model, which takes a second to run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.tiny_recipe import recipe_tables, write_model


def english_tables(folder: Path, words: Sequence[str] = (), **english: Any) -> dict[str, Any]:
    """The tables of the recipe; its model is written to `folder`. words: that its tokenizer knows
    besides its own. english: keys of [english]."""
    tables = recipe_tables(write_model(folder / "model", words), [])
    return {
        **tables,
        "data": {},
        "english": {"clients": 2, "facts": 3, "general": 8, **english},
        "federation": {"rounds": 1},
        "evaluate": {"every": 1},
    }
