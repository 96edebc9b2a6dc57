"""CSV as spreadsheets write it: commas, semicolons or tabs, and cells of any size."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.data.rows import Places, Row, RowError, Skips, SourceTable, convert_all

DELIMITERS: Final = (",", ";", "\t", "|")  # that are looked for in a header
QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')
SEP: Final = re.compile(r'("?)sep=([^"\r\n])\1\r?\n')  # Excel's own first line
HEAD: Final = 2**16  # characters in which a header ends
LARGEST: Final = 2**31 - 1  # a C long, where it is shortest


def csv_rows(path: Path, text: str, delimiter: str | None, skips: Skips = ()) -> SourceTable:
    """Rows by line. delimiter: between cells, or None to detect it."""
    places = Places(path, "line")
    declared = SEP.match(text)
    used = delimiter or (declared[2] if declared else _delimiter(path, text))
    lines = _lines(path, text, used)
    if declared:
        lines = lines[1:]
    if not lines:
        return SourceTable(places, [])
    (_, written), *lines = lines
    header = _without_empty_end(written)
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{path}: column {repeated[0]!r} stands twice in the header: rename one")

    def convert(number: int, cells: Sequence[str]) -> Row:
        if not _fits(cells, written, header):
            problem = f"too {'many' if len(cells) > len(header) else 'few'} cells"
            detail = f"{len(cells)} for the header's {len(header)} columns"
            remedy = f"put texts with {used!r} or line breaks in quotes"
            raise RowError(problem, detail, remedy)
        return number, dict(zip(header, cells[: len(header)], strict=True))

    return SourceTable(places, *convert_all(places, lines, convert, skips))


def _delimiter(path: Path, text: str) -> str:
    """The one that occurs in the header and by which each row has the header's columns; where the
    header has none, the suffix's own. Raises `UserError` unless there is one such."""
    plain = QUOTED.sub("quoted", text[:HEAD])
    header = next((line for line in plain.splitlines() if line.strip()), "")
    found = [each for each in DELIMITERS if each in header]
    if len(found) < 2:
        return found[0] if found else "\t" if ".tsv" in Path(path.name.lower()).suffixes else ","
    problems = {each: _misfit(path, text, each) for each in found}
    fitting = [each for each, problem in problems.items() if not problem]
    if len(fitting) == 1:
        return fitting[0]
    listed = " and ".join(map(repr, found))
    faults = "; ".join(f"by {each!r}, {problem}" for each, problem in problems.items())
    why = "the rows fit several of them" if fitting else f"the rows fit none of them ({faults})"
    raise UserError(
        f"{path}: the header has {listed}, and {why}: say in the source which one stands between "
        f"cells, e.g. delimiter = {_toml((fitting or found)[0])}"
    )


def _misfit(path: Path, text: str, delimiter: str) -> str:
    """Why the rows of a file are not divided by a delimiter; "" where they are."""
    try:
        (_, header), *rows = _lines(path, text, delimiter)
    except UserError as error:
        return str(error).removeprefix(f"{path}:")
    names = _without_empty_end(header)
    if len(names) < 2 or len({*names}) < len(names):
        return f"the header has the columns {names}"
    for number, cells in rows:
        if not _fits(cells, header, names):
            return f"line {number} has {len(cells)} cells for the header's {len(names)} columns"
    return ""


def _without_empty_end(header: Sequence[str]) -> list[str]:
    """The header without the columns that spreadsheets write though they are empty throughout."""
    names = [*header]
    while names and not names[-1].strip():
        names.pop()
    return names


def _fits(cells: Sequence[str], header: Sequence[str], names: Sequence[str]) -> bool:
    return len(cells) == len(names) or (len(cells) == len(header) and not any(cells[len(names) :]))


def _toml(delimiter: str) -> str:
    return '"\\t"' if delimiter == "\t" else f'"{delimiter}"'


def _lines(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """(first line, cells) of each row that is not blank; strict, or a quote that is never
    closed would swallow the rest of the file."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    lines: list[tuple[int, list[str]]] = []
    start = 1
    limit = csv.field_size_limit(min(len(text) + 1, LARGEST))  # a cell is no larger than its file
    try:
        for cells in reader:
            if cells:
                lines.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{start}: not valid CSV ({error}): quotes inside a quoted text are written "
            "twice, and every quote is closed"
        ) from error
    finally:
        csv.field_size_limit(limit)
    return lines
