"""The interface of a tracking backend."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Tracked:
    """One method of one run. out: the run folder. folder: the method's. parameters: its recipe,
    without what names clients, files or secrets."""

    project: str
    run: str
    method: str
    out: Path
    folder: Path
    parameters: Mapping[str, str | float]

    @property
    def title(self) -> str:
        return f"{self.run}: {self.method}"


class Tracker(Protocol):
    """A started backend. `logged` is the last round that it holds already, -1 for none."""

    logged: int

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        """One round, in order; names are train/NAME and eval/NAME."""
        ...

    def finish(self, final: Mapping[str, float] | None) -> None:
        """The last call: the final metrics, or None where the run was interrupted."""
        ...
