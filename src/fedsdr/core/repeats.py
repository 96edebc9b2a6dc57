"""A limit on what repeated events write: each kind is reported at once, then counted."""

import logging
import threading
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

PERIOD: Final = 60.0  # seconds between two reports of one kind
KINDS: Final = 50  # distinguished within a period; events of further kinds count as one kind
OTHERS: Final = ""

Event = TypeVar("Event")


@dataclass
class _Kind(Generic[Event]):
    """count: of events since the last report, the newest of which is `event`."""

    event: Event
    reported: float = float("-inf")
    count: int = 0


class RepeatLimit(Generic[Event]):
    """Decides which events are reported: the first of a kind at once, those that follow within a
    period as a number, with the first event after it. May be used by several threads."""

    def __init__(
        self, kinds: int | None = KINDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """kinds: as `KINDS`; None for no limit. clock: gives seconds."""
        self._most, self._clock = kinds, clock
        self._kinds: dict[str, _Kind[Event]] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, event: Event) -> list[tuple[Event, int]]:
        """Note an event. Returns what to report now, of any kind: the newest event of each, and
        how many there were since the last report."""
        with self._lock:
            now = self._clock()
            self._forget(now)
            if self._most is not None and len(self._kinds) >= self._most:
                kind = kind if kind in self._kinds else OTHERS
            found = self._kinds.setdefault(kind, _Kind(event))
            found.event, found.count = event, found.count + 1
            return self._reports(now)

    def rest(self) -> list[tuple[Event, int]]:
        """What has not been reported yet, for the end of a process."""
        with self._lock:
            return self._reports(self._clock(), period=0.0)

    def _forget(self, now: float) -> None:
        found = self._kinds.items()
        self._kinds = {k: each for k, each in found if each.count or now - each.reported < PERIOD}

    def _reports(self, now: float, period: float = PERIOD) -> list[tuple[Event, int]]:
        due = [
            each for each in self._kinds.values() if each.count and now - each.reported >= period
        ]
        reports = [(each.event, each.count) for each in due]
        for each in due:
            each.reported, each.count = now, 0
        return reports


class RepeatHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Logs to stderr; a message that is repeated is logged once a period, with its count."""

    def __init__(self) -> None:
        super().__init__()
        self._limit: RepeatLimit[logging.LogRecord] = RepeatLimit()

    def emit(self, record: logging.LogRecord) -> None:
        for found, count in self._limit.add(record.getMessage(), record):
            shown = copy(found)
            if count > 1:
                shown.msg, shown.args = f"{found.getMessage()} ({count} times)", None
            super().emit(shown)
