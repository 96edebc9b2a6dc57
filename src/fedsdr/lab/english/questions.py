"""General questions that no client trains on: four choices each, one of them right.

They are our own, in `general.jsonl`, written to be easy and to have one right answer. Topics
alternate in the file, so that its first questions are a fair sample.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class GeneralQuestion:
    """answer: the index of the right choice."""

    topic: str
    question: str
    choices: tuple[str, ...]
    answer: int


@cache
def general_questions() -> tuple[GeneralQuestion, ...]:
    """All questions, in the order of the file."""
    lines = (resources.files(__package__) / "general.jsonl").read_text("utf-8").splitlines()
    rows = map(json.loads, lines)
    return tuple(GeneralQuestion(**{**row, "choices": tuple(row["choices"])}) for row in rows)
