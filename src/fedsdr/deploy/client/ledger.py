"""A client's ledger of releases: what it has told of its data under differential privacy, for life.

Each update that is about to leave is entered before its answer is written, with its noise and the
fingerprint of the data. The ledger belongs to the client's folder and not to a run: another name
of a run, another method, a deleted run folder or a server that starts anew is one more release of
the same client, and all of them compose. Data that change are not a new client: what differential
privacy hides is the client's data as a whole, and a record that is added leaves all others told of.
"""

import fcntl
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsdr.algorithms.accounting import composed_epsilon
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.recipe.sections.federation import Privacy

LEDGER: Final = "ledger.jsonl"
LEDGER_LOCK: Final = "ledger.lock"

log = logging.getLogger(__name__)


class BudgetError(UserError):
    """A release that the client's ledger does not allow, in words that may go to the server."""


class Release(BaseModel):
    """One line. number: from 1, without gaps. noise_multiplier: 0 for noise that is no secret.
    data: the fingerprint of the client's records at that time."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    number: Annotated[int, Field(gt=0)]
    time: float
    run: str
    method: str
    round: int
    mode: Literal["central", "local"]
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    data: str


class Ledger:
    """The releases of one client, in a file that only grows."""

    def __init__(self, folder: Path, own: Privacy) -> None:
        """folder: the client's private one. own: of the client's recipe itself, whose limit and
        delta hold for every method."""
        self.path, self._lock, self.own = folder / LEDGER, folder / LEDGER_LOCK, own

    def releases(self) -> list[Release]:
        """All of them. Raises `UserError`, which is for the owner, where the file is not what was
        written into it: what has been spent is then not known."""
        why = "lines are missing or stand in another order"
        try:
            releases = [Release.model_validate(row) for row in files.read_json_lines(self.path)]
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except UserError as error:
            why = str(error)
        else:
            if [each.number for each in releases] == [*range(1, len(releases) + 1)]:
                return releases
        raise UserError(
            f"{self.path} is not what was written into it ({why}), and what this client has "
            "released is not known: put a good copy in its place; until then nothing is released"
        )

    def check(self, release: Privacy) -> float:
        """What is spent for life once there is one more release, with the noise of `release`.

        Raises `BudgetError` where that is more than the limit, or what is spent is not known.
        """
        return self._with_one_more(self._known(), release)

    def charge(self, release: Privacy, run: str, method: str, round: int, data: str) -> None:
        """Enter a release, which may leave once this returns. data: fingerprint of the records.

        Raises `BudgetError` as `check` does, and enters nothing.
        """
        with self._alone():
            before = self._known()
            self._with_one_more(before, release)
            entry = Release(
                number=len(before) + 1, time=time.time(), run=run, method=method, round=round,
                mode=_mode(release), noise_multiplier=_noise(release), data=data,
            )  # fmt: skip
            if not self.path.exists():
                files.write_text(self.path, "", private=True)
            files.append_json_line(self.path, entry.model_dump())

    def describe(self) -> str:
        """What has been spent, and the limit, in words. Raises as `releases` does."""
        made = [(each.noise_multiplier, each.mode) for each in self.releases()]
        delta, limit = self.own.delta, self.own.lifetime_epsilon
        allowed = "no privacy.lifetime_epsilon" if limit is None else f"limit {limit:g}"
        return (
            f"epsilon {_spent(made, delta):.4g} at delta {delta:g} spent for life, by "
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

    def _with_one_more(self, before: Sequence[Release], release: Privacy) -> float:
        made = [(each.noise_multiplier, each.mode) for each in before]
        delta, limit = self.own.delta, self.own.lifetime_epsilon
        spent = _spent([*made, (_noise(release), _mode(release))], delta)
        if limit is not None and spent > limit:
            raise BudgetError(
                f"this client's own recipe has privacy.lifetime_epsilon = {limit:g}: "
                f"{len(made)} release(s) of its data spent {_spent(made, delta):.4g} for "
                f"life, and one more would make it {spent:.4g} (epsilon at delta {delta:g}): only "
                "its owner can raise the limit there, and start it again"
            )
        return spent

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process enters a release at the same time."""
        with open(self._lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _spent(made: Sequence[tuple[float, str]], delta: float) -> float:
    """Of releases, each with its noise multiplier and mode; the stricter mode holds for all."""
    local = any(mode == "local" for _, mode in made)
    return composed_epsilon(Counter(noise for noise, _ in made), delta, local)


def _mode(privacy: Privacy) -> Literal["central", "local"]:
    assert privacy.mode != "none", "what no noise is added to is no matter of the ledger"
    return privacy.mode


def _noise(privacy: Privacy) -> float:
    """Noise whose seed stands in a recipe can be taken off again."""
    return privacy.noise_multiplier if privacy.noise_seed is None else 0.0
