"""CSV as spreadsheets write it: commas, semicolons or tabs, and cells of any size."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.data.rows import Places, Row, RowError, convert_all

DELIMITERS: Final = (",", ";", "\t", "|")  # that are looked for in a header
QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')
SEP: Final = re.compile(r'("?)sep=([^"\r\n])\1\r?\n')  # Excel's own first line
HEAD: Final = 2**16  # characters in which a header ends
LARGEST: Final = 2**31 - 1  # a C long, where it is shortest


def csv_rows(path: Path, text: str, delimiter: str | None) -> tuple[Places, list[Row]]:
    """Rows by line. delimiter: between cells, or None to detect it from the header."""
    places = Places(path, "line")
    declared = SEP.match(text)
    used = delimiter or (declared[2] if declared else _delimiter(path, text))
    lines = _lines(path, text, used)
    if declared:
        lines = lines[1:]
    if not lines:
        return places, []
    (_, header), *lines = lines
    width = len(header)
    while header and not header[-1].strip():  # spreadsheets write columns that are empty throughout
        header.pop()
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{path}: column {repeated[0]!r} stands twice in the header: rename one")

    def convert(number: int, cells: Sequence[str]) -> Row:
        if len(cells) == width and not any(cells[len(header) :]):
            cells = cells[: len(header)]
        if len(cells) != len(header):
            problem = f"too {'many' if len(cells) > len(header) else 'few'} cells"
            detail = f"{len(cells)} for the header's {len(header)} columns"
            remedy = f"put texts with {used!r} or line breaks in quotes"
            raise RowError(problem, detail, remedy)
        return number, dict(zip(header, cells, strict=True))

    return places, convert_all(places, lines, convert)


def _delimiter(path: Path, text: str) -> str:
    """What stands between the cells of the header; the suffix's own where it is there."""
    usual = "\t" if ".tsv" in Path(path.name.lower()).suffixes else ","
    header = next((line for line in QUOTED.sub("", text[:HEAD]).splitlines() if line.strip()), "")
    found = [each for each in DELIMITERS if each in header]
    if usual in found or not found:
        return usual
    if len(found) == 1:
        return found[0]
    listed = " and ".join(map(repr, found))
    raise UserError(
        f"{path}: the header has {listed}, and no {usual!r}: say in the source which one stands "
        f"between cells, e.g. delimiter = {_toml(found[0])}"
    )


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
