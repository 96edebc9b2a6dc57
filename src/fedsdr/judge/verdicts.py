"""Parsing a judge's reply, strictly: an ambiguous reply is no verdict."""

import re
from typing import Final, Literal

VerdictChoice = Literal["first", "second", "tie"]

VERDICT_CHOICES: Final[dict[str, VerdictChoice]] = {"A": "first", "B": "second", "C": "tie"}
MARK: Final = re.compile(r"\[\[\s*(.*?)\s*\]\]", re.DOTALL)
VERDICT_SCORES: Final = {str(score): score for score in range(1, 11)}


def read_choice(reply: str) -> VerdictChoice | None:
    """[[A]], [[B]] or [[C]]; None where there is no such mark, or several that differ."""
    return VERDICT_CHOICES.get(_only_mark(reply))


def read_score(reply: str) -> int | None:
    """A whole number from 1 to 10 as [[7]]; None for anything else."""
    return VERDICT_SCORES.get(_only_mark(reply))


def _only_mark(reply: str) -> str:
    marks = set(MARK.findall(reply))
    return marks.pop() if len(marks) == 1 else ""
