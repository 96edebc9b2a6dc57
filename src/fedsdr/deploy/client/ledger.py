"""A client's ledger of releases: what it has released of its data, for life.

Each update that is about to leave is entered before its answer is written, with its noise and the
fingerprint of the data. The ledger belongs to the client's folder and not to a run: another name
of a run, another method, a deleted run folder or a server that starts anew is one more release of
the same client, and all of them compose. Data that change are not a new client: what differential
privacy hides is the client's data as a whole, and a record that is added takes nothing back that
was released of the others.

The client's journal holds how long the ledger was when an update was entered there last, and the
digest of these lines. The ledger is written first: a client that dies in between has lines that
the journal does not know yet, and goes on; a ledger that lacks lines which the journal knows was
cut or put back from an older copy, and nothing is released.
"""

import fcntl
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsdr.algorithms.accounting import composed_epsilon
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.deploy.client.journal import LedgerMark, ledger_mark
from fedsdr.deploy.protocol.signing import message_digest
from fedsdr.recipe.sections.federation import Privacy

LEDGER: Final = "ledger.jsonl"
LEDGER_LOCK: Final = "ledger.lock"

log = logging.getLogger(__name__)


class BudgetError(UserError):
    """A release that the client's ledger does not allow, in words that may go to the server."""


class Release(BaseModel):
    """One line. number: from 1, without gaps. noise_multiplier: 0 for noise that is no secret.
    data: the fingerprint of the client's records at that time. question: the digest of what was
    asked; "" in lines of earlier versions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    number: Annotated[int, Field(gt=0)]
    time: float
    run: str
    method: str
    round: int
    mode: Literal["central", "local"]
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    data: str
    question: str = ""


class UpdateKey(NamedTuple):
    """Which update is released. question: the digest of what was asked, by which the same question
    is known after a restart; "" for none."""

    run: str
    method: str
    round: int
    question: str


def ledger_begun(folder: Path) -> bool:
    """Whether a client's private folder has a ledger, or its journal knows that it had one."""
    return (folder / LEDGER).exists() or ledger_mark(folder) is not None


class Ledger:
    """The releases of one client, in a file that only grows."""

    def __init__(self, folder: Path, own: Privacy) -> None:
        """folder: the client's private one. own: of the client's recipe itself, whose limit and
        delta hold for every method."""
        self.path, self._lock, self.own = folder / LEDGER, folder / LEDGER_LOCK, own

    def releases(self) -> list[Release]:
        """All of them. Raises `UserError`, which is for the owner, where the file is not what was
        written into it: what has been spent is then not known."""
        try:
            rows = files.read_json_lines(self.path)
            releases = [Release.model_validate(row) for row in rows]
            why = self._fault(releases)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except UserError as error:
            why = str(error)
        if not why:
            return releases
        raise UserError(
            f"{self.path} is not what was written into it ({why}), and what this client has "
            "released is not known: put a good copy in its place; until then nothing is released"
        )

    def mark(self) -> LedgerMark | None:
        """How long the ledger is, for the journal; None for one without lines."""
        return self._mark(len(self.releases()))

    def check(self, release: Privacy, update: UpdateKey | None = None) -> float:
        """What is spent for life once `update` is released, with the noise of `release`.

        update: None for one that has not been entered. Raises `BudgetError` where that is more
        than the limit, or what is spent is not known.
        """
        before = self._known()
        return self._spent(before) if _has(before, update) else self._one_more(before, release)

    def charge(self, release: Privacy, update: UpdateKey, data: str) -> LedgerMark:
        """Enter a release, which may leave once this returns. data: fingerprint of the records.

        An update to the same question is entered once: what was entered and is asked for again was
        not kept, for the client died before, and so none of it has left. Returns how long the
        ledger is now, for the journal. Raises `BudgetError` as `check` does, and enters nothing.
        """
        with self._alone():
            before = self._known()
            if not _has(before, update):
                self._one_more(before, release)
                entry = Release(
                    number=len(before) + 1, time=time.time(), mode=_mode(release),
                    noise_multiplier=_noise(release), data=data, **update._asdict(),
                )  # fmt: skip
                if not self.path.exists():
                    files.write_text(self.path, "", private=True)
                files.append_json_line(self.path, entry.model_dump())
            mark = self.mark()
            assert mark is not None
            return mark

    def describe(self) -> str:
        """What has been spent, and the limit, in words. Raises as `releases` does."""
        made = self.releases()
        delta, limit = self.own.delta, self.own.lifetime_epsilon
        allowed = "no privacy.lifetime_epsilon" if limit is None else f"limit {limit:g}"
        return (
            f"epsilon {self._spent(made):.4g} at delta {delta:g} spent for life, by "
            f"{len(made)} release(s) ({allowed})"
        )

    def _known(self) -> list[Release]:
        try:
            return self.releases()
        except UserError as error:  # which names a path of this machine
            log.error("%s", error)
            raise BudgetError(
                "this client's ledger of releases cannot be read, and nothing is released until "
                "its owner puts a good copy in its place"
            ) from error

    def _fault(self, releases: Sequence[Release]) -> str:
        """What is wrong with the ledger of these lines; "" where nothing is."""
        known = ledger_mark(self.path.parent)
        if known and len(releases) < known.count:
            return (
                f"it has {len(releases)} line(s), and the client's journal knows of {known.count}"
            )
        if known and self._mark(known.count) != known:
            return f"its first {known.count} line(s) are not those that the client's journal knows"
        if [each.number for each in releases] != [*range(1, len(releases) + 1)]:
            return "lines are missing or stand in another order"
        return ""

    def _mark(self, count: int) -> LedgerMark | None:
        """Of the first `count` lines."""
        if not count:
            return None
        lines = [line for line in self.path.read_bytes().split(b"\n") if line]
        return LedgerMark(count=count, digest=message_digest(b"\n".join(lines[:count])))

    def _one_more(self, before: Sequence[Release], release: Privacy) -> float:
        delta, limit = self.own.delta, self.own.lifetime_epsilon
        spent = self._spent(before, (_noise(release), _mode(release)))
        if limit is not None and spent > limit:
            raise BudgetError(
                f"this client's own recipe has privacy.lifetime_epsilon = {limit:g}: "
                f"{len(before)} release(s) of its data spent {self._spent(before):.4g} for "
                f"life, and one more would make it {spent:.4g} (epsilon at delta {delta:g}): only "
                "its owner can raise the limit there, and start it again"
            )
        return spent

    def _spent(self, made: Sequence[Release], *more: tuple[float, str]) -> float:
        """more: noise multiplier and mode of a further release. The stricter mode holds for all."""
        releases = [*((each.noise_multiplier, each.mode) for each in made), *more]
        local = any(mode == "local" for _, mode in releases)
        return composed_epsilon(Counter(noise for noise, _ in releases), self.own.delta, local)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process enters a release at the same time."""
        with open(self._lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _has(releases: Sequence[Release], update: UpdateKey | None) -> bool:
    if update is None or not update.question:
        return False
    return any((r.run, r.method, r.round, r.question) == update for r in releases)


def _mode(privacy: Privacy) -> Literal["central", "local"]:
    assert privacy.mode != "none", "what no noise is added to is no matter of the ledger"
    return privacy.mode


def _noise(privacy: Privacy) -> float:
    """Noise whose seed stands in a recipe can be taken off again."""
    return privacy.noise_multiplier if privacy.noise_seed is None else 0.0
