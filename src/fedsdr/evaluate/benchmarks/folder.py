"""Reading a benchmark's files, with errors that name file, row and field."""

import csv
import gzip
import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsdr.core.errors import UserError
from fedsdr.data.strict_json import json_fault, parse_json, unicode_fault
from fedsdr.evaluate.benchmarks.subject import BenchmarkRow


def find_file(data: Path, names: Iterable[str], layout: str) -> Path:
    """The first of `names` that is there."""
    for name in names:
        if (data / name).exists():
            return data / name
    raise UserError(f"{data} lacks {' or '.join(names)}: expected {layout}")


def read_csv(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; texts such as "NA" stay texts."""
    with _reading(path), open(path, encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    for number, row in enumerate(rows, start=1):
        if None in row:  # where DictReader puts what the header has no name for
            raise UserError(
                f"{path}, row {number}: more cells than the header has: put texts with commas in "
                "quotes"
            )
    return check_rows(path, rows, columns)


def read_lines(path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """The objects of a JSONL file, which may be gzipped; blank lines are no rows."""
    with _reading(path):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    # Only "\n" ends a line: str.splitlines would also break at characters that texts may hold.
    lines = [line for line in raw.removeprefix(BOM_UTF8).split(b"\n") if line.strip()]
    return check_rows(path, [_parse_line(path, *each) for each in enumerate(lines, 1)], fields)


def _parse_line(path: Path, number: int, line: bytes) -> Any:
    try:
        row = parse_json(line.decode("utf-8"))
        fault = json_fault(row)
    except json.JSONDecodeError as error:
        fault = f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        fault = str(error)
    if fault:
        raise UserError(f"{path}, row {number}: not valid JSON ({fault}): mend or remove the row")
    return row


def check_rows(path: Path, rows: Any, fields: Iterable[str]) -> list[Any]:
    """The same rows; raises unless there are some and each is an object with all `fields`."""
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} holds no rows")
    for number, row in enumerate(rows, start=1):
        lacking = [f for f in fields if not isinstance(row, dict) or row.get(f) is None]
        if lacking:
            raise UserError(
                f"{path}, row {number}: lacks {lacking[0]!r}; expected {', '.join(fields)}"
            )
        if fault := unicode_fault(row):
            raise UserError(
                f"{path}, row {number}: not valid Unicode ({fault}): mend or remove the row"
            )
    return rows


def check_texts(path: Path, number: int, row: BenchmarkRow, fields: Iterable[str]) -> None:
    """Raise unless these fields of a row are texts."""
    if wrong := [field for field in fields if not isinstance(row[field], str)]:
        raise UserError(
            f"{path}, row {number}: {wrong[0]} = {row[wrong[0]]!r:.80}: expected a text, in quotes"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Converts errors of reading a file into `UserError`."""
    try:
        yield
    except (OSError, ValueError, EOFError, RecursionError, csv.Error, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def leading_shots(path: Path, rows: list[Any], shots: int) -> list[Any]:
    """The shots of a file that holds nothing else."""
    if len(rows) < shots:
        raise UserError(f"{path} has {len(rows)} rows: expected {shots} shots")
    return rows[:shots]


def split_shots(path: Path, rows: list[Any], shots: int) -> tuple[list[Any], list[Any]]:
    """(shots, questions) of a file that holds both: the first rows are the shots."""
    if len(rows) <= shots:
        raise UserError(f"{path} has {len(rows)} rows: expected more than its {shots} shots")
    return rows[:shots], rows[shots:]
