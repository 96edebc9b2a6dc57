"""What a client has carried out: nothing twice, and nothing that is over.

The questions of a run have an order for each client and method: prepare, the evaluation before
training, then each round's fit and its evaluation, finish. A client goes only forward in it, and
only from a run to a newer one, whatever else of its folder has been deleted since. A question that
comes again, after a crash on either side, gets the answer that was kept, as long as it is kept; a
round's update is kept until the one after the next.

The journal has a name, drawn when it is begun, and a question says in which journal it is to be
entered. So a client that has lost its journal, and all memory with it, carries out nothing that it
was asked before: its server has to learn the new name first, by a greeting.
"""

import re
import secrets
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.deploy.protocol.messages import (
    Answer,
    Name,
    Operation,
    Request,
    RoundNumber,
    decode_answer,
    encode_message,
)

JOURNAL: Final = "journal.json"
ORDER: Final[dict[Operation, int]] = {"prepare": 0, "fit": 1, "evaluate": 2, "finish": 3}
ANSWERS_KEPT: Final = re.compile(
    r"answer-(\d{6})-(?:fit-)?[0-9a-f]{32}\.bin"
)  # of a round's update
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class RefusalError(UserError):
    """Why a request is not carried out, in words that may be sent to the server."""


class Page(BaseModel):
    """How far this client has come in a method: the last question that it answered, the last round
    whose update it answered, and the last of those that counted, as far as the server said."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    operation: Operation = "prepare"
    round: RoundNumber = 0
    request: str = ""
    fitted: RoundNumber = 0
    counted: RoundNumber = 0

    def is_over(self, request: Request) -> bool:
        """Whether a question is the last answered one, or comes before it."""
        if not self.request:  # of a journal that was lost, nothing is known but updates
            return request.operation == "fit" and request.round <= self.fitted
        mine, last = ((each.round, ORDER[each.operation]) for each in (request, self))
        return mine <= last


class LedgerMark(BaseModel):
    """How long the ledger of releases was, in lines, and the digest of these lines."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    count: Annotated[int, Field(gt=0)]
    digest: Digest


class Book(BaseModel):
    """The journal's file: its name, the newest run that was entered, that run's methods, the names
    of all runs before it, and the ledger as it was when an update was entered last."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Digest
    run: Name | None = None
    began: int = 0
    methods: dict[Name, Page] = {}
    past: list[Name] = []
    ledger: LedgerMark | None = None


class RequestJournal:
    """The journal of one client, in its private folder; its file is read for each question."""

    def __init__(self, folder: Path) -> None:
        """Begin the journal where there is none. Raises `UserError` for one that is broken."""
        self.path = folder / JOURNAL
        if not self.path.exists():
            self._write(Book(name=secrets.token_hex(16)))
        self._read()

    @property
    def name(self) -> str:
        return self._read().name

    def recall(self, request: Request, digest: str, folder: Path) -> Answer | None:
        """The answer that was given to this very question; None for a question that is the next.

        digest: of the request. folder: of the run's method. Raises `RefusalError` for one that is
        neither.
        """
        book = self._read()
        _check_run(book, request)
        page, path = self._page(book, request, folder), _path(request, digest, folder)
        if path.exists():
            answer = decode_answer(path.read_bytes())
            if not page.is_over(request):  # the client died after it had kept the answer
                self.enter(request, digest, folder, answer)
            return answer
        if page.is_over(request):
            raise RefusalError(_why_over(page, request, digest))
        if not page.counted <= request.counted <= page.fitted:
            raise RefusalError(
                f"the server says that this client's round {request.counted} counted last, and "
                f"here it is one from {page.counted} to {page.fitted}: take part in a new run"
            )
        return None

    def enter(
        self,
        request: Request,
        digest: str,
        folder: Path,
        answer: Answer,
        ledger: LedgerMark | None = None,
    ) -> None:
        """Keep the answer, and note the question; an update before the last one goes.

        ledger: how long it is with the release of this answer; None for one that is no release.
        """
        book = self._read()
        page = self._page(book, request, folder)
        files.write_bytes(_path(request, digest, folder), encode_message(answer), private=True)
        trained = request.operation == "fit" and not answer.refused
        fitted = request.round if trained else page.fitted
        new = Page(
            operation=request.operation, round=request.round, request=digest, fitted=fitted,
            counted=request.counted,
        )  # fmt: skip
        methods = {**(book.methods if book.run == request.run else {}), request.method: new}
        before = [] if book.run in (None, request.run) else [book.run]
        past = [*book.past, *before]
        self._write(
            Book(
                name=book.name, run=request.run, began=request.began, methods=methods, past=past,
                ledger=ledger or book.ledger,
            )
        )  # fmt: skip
        for round, path in _updates(folder):
            if request.operation == "fit" and round < page.fitted:
                path.unlink()

    def note_ledger(self, ledger: LedgerMark | None) -> None:
        """Note how long the ledger is, where that is not known yet."""
        book = self._read()
        if ledger != book.ledger:
            self._write(book.model_copy(update={"ledger": ledger}))

    def _page(self, book: Book, request: Request, folder: Path) -> Page:
        """Where a method stands; one of a lost journal, at the updates that are kept."""
        found = book.methods.get(request.method) if book.run == request.run else None
        return found or Page(fitted=max((round for round, _ in _updates(folder)), default=0))

    def _read(self) -> Book:
        return _read_book(self.path)

    def _write(self, book: Book) -> None:
        files.write_json(self.path, book.model_dump(), private=True)


def _read_book(path: Path) -> Book:
    try:
        return Book.model_validate(files.read_json(path))
    except ValidationError as error:
        raise UserError(
            f"{path} is broken: {error.errors()[0]['msg']}: delete it, and this client can take "
            "part in new runs"
        ) from error


def ledger_mark(folder: Path) -> LedgerMark | None:
    """How long the ledger in a client's private folder is at least, as its journal knows; None
    where it knows of no release. Raises `UserError` for a journal that is broken."""
    path = folder / JOURNAL
    return _read_book(path).ledger if path.exists() else None


def _check_run(book: Book, request: Request) -> None:
    """Raise `RefusalError` for a run that is over, whenever it says that it began."""
    if book.run is None or (request.run, request.began) == (book.run, book.began):
        return
    if request.run == book.run:
        raise RefusalError("this run began at another time, as it said before: begin a new run")
    if request.run in book.past or request.began <= book.began:
        raise RefusalError(
            "this client has taken part in a newer run since: begin a new run (a server whose "
            "clock was wrong has to have it right first)"
        )


def _path(request: Request, digest: str, folder: Path) -> Path:
    return folder / f"answer-{request.round:06d}-{request.operation}-{digest}.bin"


def _updates(folder: Path) -> list[tuple[int, Path]]:
    """The updates that are kept, with their rounds."""
    matches = [(ANSWERS_KEPT.fullmatch(path.name), path) for path in folder.glob("answer-*.bin")]
    return [(int(match[1]), path) for match, path in matches if match]


def _why_over(page: Page, request: Request, digest: str) -> str:
    last = f"{page.operation} of round {page.round} was last"
    if digest == page.request:
        return f"{last}, and its answer has been deleted here: go on without this client"
    if (page.operation, page.round) == (request.operation, request.round):
        return (
            f"{request.operation} of round {request.round} was answered for another global model "
            "or in other words: go on from the server's last checkpoint, or begin a new run"
        )
    return (
        f"{request.operation} of round {request.round} is over here: {last}. If the server has an "
        "older state than its clients, or the run was begun by another version of fedsdr, begin a "
        "new run: move its run folder away"
    )
