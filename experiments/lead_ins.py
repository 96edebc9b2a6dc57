"""What is left of general knowledge on the English lab, by the words that an answer begins with.

    python -m experiments.lead_ins runs/demo-real/seed-0

The metric `general` lets answers begin with "The answer is", as many rewrites do. Where two methods
differ by these words alone, it is not by what they know. Of the base model and all global models of
a finished run: general questions answered rightly, and of those that the base model answers
rightly, in percent.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fedsdr.core.errors import UserError
from fedsdr.core.metrics import hit_percentage
from fedsdr.core.progress import silent_reporter
from fedsdr.lab.english.evaluate import LEAD_IN, known_answers
from fedsdr.lab.english.questions import general_questions
from fedsdr.workflows.finished import BASE_MODEL, CLIENT_PREFIX, Models, open_finished

LEAD_INS: Final = (LEAD_IN, "", "Answer:", "It is")


class Knowledge(NamedTuple):
    """Shares in percent."""

    model: str
    lead_in: str
    right: float
    kept: float


def knowledge_by_lead_in(folder: Path, lead_ins: Sequence[str] = LEAD_INS) -> Iterator[Knowledge]:
    """Of each model and beginning, models one after another. Raises `UserError` for a run that is
    not on the English lab."""
    run = open_finished(folder)
    if (world := run.recipe.english) is None:
        raise UserError(f"{folder}: this run is not on the English lab, which has the questions")
    models = Models(run, silent_reporter())
    questions = general_questions()[: world.general]
    known: dict[str, list[bool]] = {}
    for name in (each for each in models.names() if CLIENT_PREFIX not in each):
        models.use(name)
        for lead_in in lead_ins:
            right = known_answers(models.base.model, models.base.chat, questions, lead_in)
            before = known.setdefault(lead_in, right)
            kept = [hit for hit, knew in zip(right, before, strict=True) if knew]
            shares = (hit_percentage(hits).value for hits in (right, kept))
            yield Knowledge(name, lead_in, *shares)


def main(folder: Path) -> None:
    for model, lead_in, right, kept in knowledge_by_lead_in(folder):
        print(f"{model}, {lead_in!r}: {right:.1f} right, {kept:.1f} of what {BASE_MODEL} knew")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
