"""Notices: what a run skips, cuts, freezes or does not evaluate, a line each.

Printed by `check` and `run` before the work, and shown in the report after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fedsdr.core.progress import Reporter

Kind = Literal[
    "skipped", "conversations", "not used", "left out", "cut", "not judged", "not rewritten",
    "not soft", "frozen", "unused", "dated",
]  # fmt: skip
SHOWN_ITEMS = 4  # clients that a line names


@dataclass(frozen=True)
class Notice:
    """kind: what happens. words: to what, how often and where."""

    kind: Kind
    words: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}"


def announce_notices(notices: Sequence[Notice], reporter: Reporter) -> None:
    """Print each notice on a line."""
    for notice in notices:
        reporter.say(str(notice))


def as_rows(notices: Sequence[Notice]) -> list[dict[str, Any]]:
    """Ready for JSON."""
    return [asdict(each) for each in notices]


def records_by_client(records: Mapping[str, Sequence[str]]) -> str:
    """The number of records of each client, and the position of the first of them.

    records: client -> positions (file and line) of its records.
    """
    some = {client: places for client, places in records.items() if places}
    listed = [f"{client} {len(places)}" for client, places in some.items()]
    first = next(iter(some.values()))[0]
    return f"{name_items(listed)}{f'; first {first}' if first else ''}"


def name_items(items: Sequence[str], shown: int = SHOWN_ITEMS) -> str:
    """The first items, and how many more there are: "a, b and 3 more"."""
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more} more" if more > 0 else "")


def plural_form(count: int, noun: str) -> str:
    """ "1 round", "2 rounds"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
