"""Progress bars for people at a terminal, plain lines for logs, nothing for tests."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bar:
    """One line of progress: advance it, or replace its note."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=steps)
            if note is not None:
                self._progress.update(self._task, note=note)


class Reporter:
    """Progress of long-running stages. `Reporter(None)` is silent."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._progress: Progress | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw bars while the block runs (only on a terminal)."""
        if self._console is None or not self._console.is_terminal:
            yield
            return
        with Progress(*progress_columns(), console=self._console, transient=False) as progress:
            self._progress = progress
            try:
                yield
            finally:
                self._progress = None

    @contextmanager
    def bar(self, description: str, total: int, keep: bool = True) -> Iterator[Bar]:
        """A bar of `total` steps; `keep=False` removes it when done (the inner bars)."""
        if self._progress is None:
            if keep:
                self.say(f"{description} ({total})")
            yield Bar(None, None)
            return
        task = self._progress.add_task(description, total=total, note="")
        try:
            yield Bar(self._progress, task)
        finally:
            if not keep:
                self._progress.remove_task(task)

    def say(self, text: str) -> None:
        """One line above the bars."""
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False)


def progress_columns() -> list[ProgressColumn]:
    """What a bar shows."""
    return [
        SpinnerColumn(),
        TextColumn("{task.description:<26}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]


def silent_reporter() -> Reporter:
    """A reporter that prints nothing."""
    return Reporter(None)


def terminal_reporter() -> Reporter:
    """A reporter on standard error, so that standard output stays usable in a pipe."""
    return Reporter(Console(file=sys.stderr, soft_wrap=True))
