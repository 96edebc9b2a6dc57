"""Records of a file, or what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record, Turn
from fedsdr.data.sources import read_source
from fedsdr.recipe.sections.data import Source

ALPACA = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello"},
]


def read_records(path: Path, seed: int = 0, **options: Any) -> list[Record]:
    return read_source(Source(path=str(path), **options), seed).records


def error_message(path: Path, **options: Any) -> str:
    """The text of the error, which must begin with a place in the file or say the path."""
    with pytest.raises(UserError) as caught:
        read_records(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value).replace(str(path.parent) + "/", "")


def user_turn(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)
