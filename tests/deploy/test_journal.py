"""The journal of a client: what is over stays over, whatever a server says of its runs."""

from pathlib import Path
from typing import Any

import pytest

from fedsdr.core import files
from fedsdr.deploy.client.journal import RefusalError, RequestJournal
from fedsdr.deploy.protocol.messages import Answer, Request


class Asked:
    """A journal, and questions to it, each in words of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal, self.count = folder, RequestJournal(folder), 0

    def __call__(self, operation: Any, run: str, began: int, round: int, counted: int = 0) -> None:
        self.count += 1
        place = self.folder / run
        place.mkdir(exist_ok=True)
        request = Request(
            operation, run, "x", "anna", "m", round, counted=counted, began=began,
            journal=self.journal.name,
        )  # fmt: skip
        digest = f"{self.count:032x}"
        assert self.journal.recall(request, digest, place) is None
        answer = Answer(operation, run, "anna", "m", round, request=digest)
        RequestJournal(self.folder).enter(request, digest, place, answer)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


AGAIN = [("fit", 3), ("evaluate", 0), ("evaluate", 2), ("finish", 3), ("prepare", 0)]


@pytest.mark.parametrize(("operation", "round"), AGAIN)
@pytest.mark.parametrize("between", [["b"], ["b", "c"]])
def test_a_run_that_was_left_is_over_whenever_it_says_that_it_began(
    asked, between, operation, round
):
    asked("fit", "a", 1, 1)
    asked("fit", "a", 1, 2, counted=1)
    asked("finish", "a", 1, 3, counted=2)
    for began, run in enumerate(between, 2):
        asked("prepare", run, began, 0)
    for began in (1, 2, 9):
        with pytest.raises(RefusalError, match="a newer run since"):
            asked(operation, "a", began, round)
    asked("fit", between[-1], 1 + len(between), 1)


@pytest.mark.parametrize("began", [1, 3])
def test_a_run_has_one_beginning(asked, began):
    asked("fit", "a", 2, 1)
    with pytest.raises(RefusalError, match="began at another time"):
        asked("fit", "a", began, 2)
    asked("fit", "a", 2, 2)


def test_a_journal_from_before_past_runs_were_noted_is_read(asked):
    asked("fit", "a", 1, 1)
    book = files.read_json(asked.journal.path)
    del book["past"]
    files.write_json(asked.journal.path, book)
    asked("fit", "b", 2, 1)
    with pytest.raises(RefusalError):
        asked("fit", "a", 3, 2)
