"""The journal of a client: what is over stays over, whatever a server says of its runs."""

from pathlib import Path
from typing import Any

import pytest

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.deploy.client.journal import RefusalError, RequestJournal
from fedsdr.deploy.protocol.messages import Answer, Request


class Asked:
    """A journal, and questions to it, each in words of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal, self.count = folder, RequestJournal(folder), 0

    def __call__(
        self, operation: Any, run: str, began: int, round: int, counted: int = 0, method: str = "m"
    ) -> None:
        self.count += 1
        place = self.folder / run / method
        place.mkdir(parents=True, exist_ok=True)
        request = Request(
            operation, run, "x", "anna", method, round, counted=counted, began=began,
            journal=self.journal.name,
        )  # fmt: skip
        digest = f"{self.count:032x}"
        assert self.journal.recall(request, digest, place) is None
        answer = Answer(operation, run, "anna", method, round, request=digest)
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


def test_a_journal_is_its_owners_alone(asked):
    assert asked.journal.path.stat().st_mode & 0o777 == 0o600
    asked("fit", "a", 1, 1)
    assert {path.stat().st_mode & 0o777 for path in (asked.folder / "a" / "m").iterdir()} == {0o600}
    assert asked.journal.path.stat().st_mode & 0o777 == 0o600


def test_a_broken_journal_is_named_with_its_fault_and_a_remedy(asked):
    book = files.read_json(asked.journal.path)
    files.write_json(asked.journal.path, {**book, "began": "early"})
    with pytest.raises(UserError, match=r"journal.json is broken: .*integer: delete it, and"):
        RequestJournal(asked.folder)


def test_methods_of_a_run_are_each_over_for_themselves(asked):
    asked("fit", "a", 1, 1, method="first")
    asked("fit", "a", 1, 1, method="second")
    for method in ("first", "second"):
        with pytest.raises(RefusalError, match="fit of round 1 was answered for another"):
            asked("fit", "a", 1, 1, method=method)


@pytest.mark.parametrize(("round", "over"), [(1, True), (2, True), (3, False)])
def test_without_its_journal_a_client_trains_no_round_again_whose_update_it_kept(
    asked, round, over
):
    asked("fit", "a", 1, 1)
    asked("fit", "a", 1, 2, counted=1)
    asked.journal.path.unlink()
    again = Asked(asked.folder)
    again.count = asked.count
    if over:
        with pytest.raises(RefusalError, match=f"fit of round {round} is over here"):
            again("fit", "a", 1, round)
    else:
        again("fit", "a", 1, round, counted=2)
