"""Following one method: its rounds as they are committed, its parameters, its final metrics.

A backend that fails (no disk space, no network) is disabled for the rest of the method with one
message, and training continues.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedsdr.core.progress import Reporter
from fedsdr.recipe.load import flatten_tables
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.contract import Tracked, Tracker
from fedsdr.tracking.table import Backend

# Keys that name clients, their files or a secret, or do not describe the method itself.
WITHHELD = ("data.sources", "lora.ranks", "privacy.noise_seed", "variants", "baselines", "tracking")


class Follower:
    """Use it as a context: backends start with it, and end with it whatever happens."""

    def __init__(self, backends: Mapping[str, Backend], tracked: Tracked, reporter: Reporter):
        self._backends, self._tracked, self._reporter = backends, tracked, reporter
        self._trackers: dict[str, Tracker] = {}
        self._final: dict[str, float] | None = None

    def __enter__(self) -> Self:
        for name, backend in self._backends.items():
            self._guard(name, partial(self._start, name, backend))
        return self

    def _start(self, name: str, backend: Backend) -> None:
        self._trackers[name] = backend.start(self._tracked)

    def row(self, row: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl; one that a backend has from before a resume is not repeated."""
        metrics = {
            f"{kind}/{name}": float(value)
            for kind in ("train", "eval")
            for name, value in row.get(kind, {}).items()
        }
        for name, tracker in list(self._trackers.items()):
            if row["round"] > tracker.logged:
                self._guard(name, partial(tracker.log, row["round"], metrics))

    def final(self, result: Mapping[str, float]) -> None:
        """The method is done, with these metrics."""
        self._final = dict(result)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        final = self._final if kind is None else None
        for name, tracker in list(self._trackers.items()):
            self._guard(name, partial(tracker.finish, final))

    def _guard(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a backend raises, training goes on
            self._trackers.pop(name, None)
            self._reporter.say(
                f"tracking by {name} failed and stops for {self._tracked.method}; the run goes "
                f"on: {type(error).__name__}: {error!s:.200}"
            )


def tracked_method(method: Method, out: Path) -> Tracked:
    """The description, for tracking backends, of a method of the run in `out`."""
    options = method.recipe.tracking
    parameters = tracked_parameters(method.recipe)
    return Tracked(
        options.project, options.name or out.name, method.name, out, method.folder, parameters
    )


def tracked_parameters(recipe: Recipe) -> dict[str, str | float]:
    """The resolved recipe as "a.b" -> number or text; of a model's folder, its name alone."""
    leaves = flatten_tables(recipe.model_dump(mode="json"))
    kept = {key: value for key, value in leaves.items() if not key.startswith(WITHHELD)}
    for key in ("model.path", "model.template"):
        if Path(kept[key]).is_absolute():
            kept[key] = Path(kept[key]).name
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in kept.items()}
