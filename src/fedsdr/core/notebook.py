"""Progress in a notebook: one display that is redrawn, because rich's own needs ipywidgets."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, TaskID

from fedsdr.core.progress import Reporter, progress_columns, terminal_reporter

REDRAW: Final = 0.2  # seconds between two drawings
WIDTH: Final = 100  # characters


def default_reporter() -> Reporter:
    """For calls from Python: bars in a notebook's output, else as in a terminal."""
    return NotebookReporter() if Console().is_jupyter else terminal_reporter()


class NotebookReporter(Reporter):
    """Prints lines into the cell's output, and draws bars in one display below them."""

    def __init__(self) -> None:
        console = Console(
            file=sys.stdout, force_jupyter=False, force_terminal=False, soft_wrap=True
        )  # a kernel sets FORCE_COLOR, which rich takes for a terminal
        super().__init__(console)

    @contextmanager
    def live(self) -> Iterator[None]:
        self._progress = progress = _DisplayedProgress()
        try:
            yield
        finally:
            progress.draw()
            self._progress = None


class _DisplayedProgress(Progress):
    """Keeps the tasks, and shows them through IPython instead of rich's live display."""

    def __init__(self) -> None:
        super().__init__(*progress_columns(), disable=True)
        self._page = Console(
            file=io.StringIO(), force_jupyter=False, width=WIDTH, color_system=None
        )
        self._display: Any = None
        self._drawn = 0.0

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        if time.monotonic() - self._drawn > REDRAW:
            self.draw()

    def draw(self) -> None:
        from IPython.display import display

        if not self.tasks:
            return
        with self._page.capture() as page:
            self._page.print(self.get_renderable())
        content = {"text/plain": page.get()}
        if self._display is None:
            self._display = display(content, raw=True, display_id=True)
        else:
            self._display.update(content, raw=True)
        self._drawn = time.monotonic()
