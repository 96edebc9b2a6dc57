"""Rows of a file: their cells, their positions, and errors that name these."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from fedsdr.core.errors import UserError

Item = TypeVar("Item")
Converted = TypeVar("Converted")
Cells = Mapping[str, Any]
Row = tuple[int, Cells]  # its number (see Places) and its cells


class RowError(Exception):
    """A fault of one row. Rows with an equal `problem` are counted together; `detail` is specific
    to the row, `remedy` says what to do. Users see it as a `UserError` (`convert_all`)."""

    def __init__(self, problem: str, detail: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem, self.detail, self.remedy = problem, detail, remedy

    @property
    def fault(self) -> str:
        """What is wrong with the row, in words."""
        return f"{self.problem} ({self.detail})"


@dataclass(frozen=True)
class Places:
    """Names the rows of a file: by the line they start on, or counted; both from 1."""

    path: Path
    unit: Literal["line", "row"]

    def origin(self, number: int) -> str:
        """A record's origin: "file.jsonl:12" or "file.json, row 12"."""
        return self._after(self.path.name, number)

    def full(self, number: int) -> str:
        """The same with the whole path, for error messages."""
        return self._after(str(self.path), number)

    def _after(self, name: str, number: int) -> str:
        return f"{name}:{number}" if self.unit == "line" else f"{name}, row {number}"


class SkippedRow(NamedTuple):
    """A row that is left out. place: file and line or row. reason: why, in words."""

    place: str
    reason: str


class SourceTable(NamedTuple):
    """A file's rows in its order, and those that could not be read and were left out."""

    places: Places
    rows: list[Row]
    skipped: Sequence[SkippedRow] = ()


Skips = tuple[type[RowError], ...]  # the errors whose rows are left out, and raise nothing


def convert_all(
    places: Places,
    items: Iterable[tuple[int, Item]],
    convert: Callable[[int, Item], Converted],
    skips: Skips = (),
) -> tuple[list[Converted], list[SkippedRow]]:
    """Convert every (number, item), and list those whose error is one of `skips`. Where others
    fail, a `UserError` names the first of them and says which have the same problem."""
    good: list[Converted] = []
    bad: list[tuple[int, RowError]] = []
    skipped: list[SkippedRow] = []
    for number, item in items:
        try:
            good.append(convert(number, item))
        except skips as error:
            skipped.append(SkippedRow(places.origin(number), error.fault))
        except RowError as error:
            bad.append((number, error))
    if bad:
        number, first = bad[0]
        raise row_refusal(
            places.full(number), [(str(n), e) for n, e in bad], f"{places.unit} "
        ) from first
    return good, skipped


def row_refusal(first: str, bad: Sequence[tuple[str, RowError]], unit: str = "") -> UserError:
    """The error for rows that cannot be used. first: the first one's full position; bad: all
    positions and errors; unit: printed before the list of the other positions."""
    (_, error), *others = bad
    same = [place for place, other in others if other.problem == error.problem]
    text = f"{first}: {error.fault}{_also(same, unit)}: {error.remedy}"
    return UserError(text)


def _also(places: Sequence[str], unit: str, shown: int = 5) -> str:
    if not places:
        return ""
    listed = ", ".join(places[:shown]) + (", ..." if len(places) > shown else "")
    rows = "1 more row has" if len(places) == 1 else f"{len(places)} more rows have"
    return f"; {rows} the same problem ({unit}{listed})"


def json_kind(value: Any) -> str:
    """What a cell holds, in the words of JSON."""
    kinds: dict[type, str] = {
        type(None): "null",
        bool: "true or false",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    number = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    return kinds.get(type(value), number)
