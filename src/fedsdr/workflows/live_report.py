"""The report of a run that is not finished, written again as results come in."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedsdr.core.progress import Reporter
from fedsdr.report.html import write_report
from fedsdr.report.unfinished import interim_summary

COST_LIMIT: Final = 0.02  # the most of a run's time that goes into its interim reports


class LiveReport:
    """Writes report.html after evaluations, unless it takes too long.

    A report that cannot be written ends these reports with a notice; the run goes on.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        reporter: Reporter,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """folders: of the run, and of the comparison that it is a part of. clock: in seconds."""
        self._folders, self._reporter, self._clock = folders, reporter, clock
        self._next = clock()  # when it has become cheap enough to write again
        self._works = True

    def observe(self, row: Mapping[str, Any]) -> None:
        """A line of a method's log, which has been written."""
        if "eval" in row and self._works and self._clock() >= self._next:
            self._write()

    def _write(self) -> None:
        began = self._clock()
        try:
            for folder in self._folders:
                write_report(folder, interim_summary(folder))
        except Exception as error:  # whatever it is, training goes on
            self._works = False
            self._reporter.say(
                "the live report failed and stops; the run goes on, and ends with a report: "
                f"{type(error).__name__}: {error!s:.200}"
            )
        ended = self._clock()
        self._next = ended + (ended - began) / COST_LIMIT
