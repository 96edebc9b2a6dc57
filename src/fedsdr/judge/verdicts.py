"""From a judge's reply to a verdict, strictly: what is not clear is no verdict."""

import re
from typing import Final, Literal

Choice = Literal["first", "second", "tie"]

CHOICES: Final[dict[str, Choice]] = {"A": "first", "B": "second", "C": "tie"}
MARK: Final = re.compile(r"\[\[\s*(.*?)\s*\]\]", re.DOTALL)
SCORES: Final = {str(score): score for score in range(1, 11)}


def read_choice(reply: str) -> Choice | None:
    """[[A]], [[B]] or [[C]]; None where there is no such mark, or several that differ."""
    return CHOICES.get(_only_mark(reply))


def read_score(reply: str) -> int | None:
    """A whole number from 1 to 10 as [[7]]; None for anything else."""
    return SCORES.get(_only_mark(reply))


def _only_mark(reply: str) -> str:
    marks = set(MARK.findall(reply))
    return marks.pop() if len(marks) == 1 else ""
