"""From files to records: JSONL, JSON, CSV, Parquet, `datasets` folders; every error has a place."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.data.cells import without_nulls
from fedsdr.data.contents import decode_file, is_parquet, read_bytes, unreadable_file
from fedsdr.data.conversations import NoResponseError
from fedsdr.data.csv_rows import csv_rows
from fedsdr.data.layouts import rows_to_records
from fedsdr.data.records import Record
from fedsdr.data.rows import (
    Cells,
    Places,
    Row,
    RowError,
    SkippedRow,
    Skips,
    SourceTable,
    convert_all,
    json_kind,
)
from fedsdr.data.strict_json import NotJson, json_fault, parse_json
from fedsdr.recipe.sections.data import HUB, Invalid, Learn, Source

SUFFIXES: Final[Mapping[str, str]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class SourceRecords:
    """What is read of a source.

    records: in file order. client: "" where they are pooled. rows: of the file, and skipped: those
    of them that are left out, whatever the source's `limit`; all else is of the rows drawn by it.
    answers: assistant turns, learnt or not. unanswered: where conversations do not end on an
    assistant turn. columns, keys: those that hold something which nothing reads.
    """

    client: str
    file: str
    rows: int
    records: list[Record]
    skipped: list[SkippedRow]
    answers: int
    unanswered: list[str]
    columns: list[str]
    keys: list[str]


def read_source(
    source: Source, seed: int, learn: Learn = "last", invalid: Invalid = "error"
) -> SourceRecords:
    """The records of one source; with a `limit`, of that many rows drawn by `seed` (all where
    there are fewer).

    Raises `UserError`, naming file and line or row, for whatever cannot be read, unless `invalid`
    or `source.empty` says "skip".
    """
    skips: Skips = (RowError,) if invalid == "skip" else ()
    if source.empty == "skip":
        skips = (*skips, NoResponseError)
    table = read_rows(source, skips)
    rows, skipped = rows_to_records(table, source, learn, skips)
    if source.limit is not None and source.limit < len(rows):
        generator = seeds.seeded_generator(seed, "limit", Path(source.path).name)
        drawn = torch.randperm(len(rows), generator=generator)[: source.limit]
        rows = [rows[index] for index in sorted(drawn.tolist())]
    return SourceRecords(
        client=source.client or "",
        file=table.places.path.name,
        rows=len(table.rows) + len(table.skipped),
        records=[record for row in rows for record in row.records],
        skipped=skipped,
        answers=sum(row.answers for row in rows),
        unanswered=[row.origin for row in rows if row.unanswered],
        columns=list(dict.fromkeys(name for row in rows for name in sorted(row.columns))),
        keys=list(dict.fromkeys(name for row in rows for name in sorted(row.keys))),
    )


def read_rows(source: Source, skips: Skips = ()) -> SourceTable:
    """A source's rows in file order, and how they are numbered. skips: the errors of rows that
    are left out."""
    path = Path(source.path)
    form = _format(path, source.format)
    _check_options(path, source, form)
    table = READERS[form](path, source, skips)
    if not table.rows and not table.skipped:
        raise UserError(f"{path} holds no rows: give a file with data, or remove the source")
    return table


def _check_options(path: Path, source: Source, form: str) -> None:
    """Raise `UserError` for an option that has no effect on files of this format."""
    idle = ""
    if source.delimiter is not None and form != "csv":
        idle = f"delimiter = {source.delimiter!r} is for CSV"
    elif source.encoding != "utf-8" and form in ("parquet", "datasets", "hub"):
        idle = f"encoding = {source.encoding!r} is for text files"
    if idle:
        raise UserError(f"{path}: {idle}, and this is read as {form}: remove it from the source")


def _format(path: Path, wanted: str) -> str:
    """The name of the file's format; raises `UserError` where `path` cannot have it."""
    if str(path).startswith(HUB):
        return "hub"
    try:
        exists, folder = path.exists(), path.is_dir()
    except OSError as error:
        raise unreadable_file(path, error) from error
    if not exists:
        raise UserError(
            f"{path} does not exist: give the path of a JSONL, JSON, CSV or Parquet file or of a "
            f"`datasets` folder, or {HUB}OWNER/NAME for a data set of the hub"
        )
    if folder != (wanted == "datasets") and wanted != "auto":
        kind, remedy = (
            ("a folder", "datasets") if folder else ("a file", "jsonl, json, csv or parquet")
        )
        raise UserError(f'{path} is {kind}, not of format = "{wanted}": use auto or {remedy}')
    if wanted != "auto":
        return wanted
    if folder:
        return "datasets"
    if is_parquet(path):
        return "parquet"
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        read_bytes(path)  # says what the file is, if that is why it has no known name
        raise UserError(
            f"{path}: cannot tell the format from {suffix!r} (known are "
            f'{", ".join(SUFFIXES)}, and .gz after them): add format = "jsonl", "json", "csv" or '
            '"parquet"'
        )
    return SUFFIXES[suffix]


def _read_jsonl(path: Path, source: Source, skips: Skips) -> SourceTable:
    places = Places(path, "line")
    # Only "\n" ends a line: str.splitlines would also break at characters allowed in JSON texts.
    lines = enumerate(decode_file(path, source.encoding).split("\n"), start=1)
    filled = [(number, line) for number, line in lines if line.strip()]
    return SourceTable(places, *convert_all(places, filled, _parse_line, skips))


def _parse_line(number: int, line: str) -> Row:
    try:
        return number, _cells(parse_json(line))
    except (ValueError, RecursionError) as error:
        remedy = 'mend the line (for one JSON list over many lines: format = "json")'
        raise RowError("not valid JSON", _json_fault(error), remedy) from error


def _json_fault(error: Exception) -> str:
    """What is wrong with a JSON text, and in which column; the line is named before it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _cells(value: Any) -> Cells:
    if reason := json_fault(value):
        raise RowError("not valid JSON", reason, "mend or remove the row")
    if not isinstance(value, dict):
        remedy = 'write rows as {"column": "text", ...}'
        raise RowError("not an object", f"it is {json_kind(value)}", remedy)
    return value


def _read_json(path: Path, source: Source, skips: Skips) -> SourceTable:
    places = Places(path, "row")
    text = decode_file(path, source.encoding)
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data" and error.lineno > 1
        remedy = 'for one object a line, set format = "jsonl"' if lines else "mend the file"
        place = f"{path}:{error.lineno}"
        raise UserError(f"{place}: not valid JSON ({_json_fault(error)}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}): mend the file") from error
    items = enumerate(_only_list(path, value), start=1)
    found = convert_all(places, items, lambda number, item: (number, _cells(item)), skips)
    return SourceTable(places, *found)


def _only_list(path: Path, value: Any) -> list[Any]:
    """The list of rows: the file's value itself, or the one list in its object."""
    if isinstance(value, list):
        return value
    if isinstance(value, NotJson):
        raise UserError(f"{path}: not valid JSON ({value.reason}): mend the file")
    found = json_kind(value)
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        if len(lists) == 1:
            return list(lists[0])
        found = f"an object with {len(lists)} lists"
    raise UserError(
        f"{path} holds {found}: it must be a list of objects, or an object with one such "
        'list (for one object a line: format = "jsonl")'
    )


def _read_csv(path: Path, source: Source, skips: Skips) -> SourceTable:
    return csv_rows(path, decode_file(path, source.encoding), source.delimiter, skips)


def _read_parquet(path: Path, source: Source, skips: Skips) -> SourceTable:
    """Rows of a Parquet file."""
    del source, skips
    import pyarrow.parquet  # takes a while, and few runs need it

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:  # those of pyarrow and of the system
        raise UserError(
            f"cannot read {path} as Parquet ({_first_line(error)}): fetch or write it again"
        ) from error
    return _arrow_table(path, rows)


def _arrow_table(path: Path, rows: Sequence[Cells]) -> SourceTable:
    """Arrow gives all objects of a column the same keys, those that one had not with null."""
    filled = [{name: without_nulls(value) for name, value in row.items()} for row in rows]
    return SourceTable(Places(path, "row"), list(enumerate(filled, start=1)))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _read_datasets(path: Path, source: Source, skips: Skips) -> SourceTable:
    """Rows of a `datasets` folder, of its split "train" where it has several."""
    del source, skips
    import datasets  # takes a second, and few runs need it

    try:
        loaded = datasets.load_from_disk(str(path))
        if isinstance(loaded, datasets.DatasetDict):
            loaded = _train_split(path, loaded)
        rows = _labelled(loaded)
    except UserError:
        raise
    except Exception as error:  # it documents none, and raises those of pyarrow and the system
        raise UserError(
            f"cannot read {path} as a `datasets` folder ({error}): save one with save_to_disk"
        ) from error
    return _arrow_table(path, rows)


def _read_hub(path: Path, source: Source, skips: Skips) -> SourceTable:
    """Rows of the split "train" of a data set by name, from the hub or its local cache."""
    del source, skips
    import datasets

    name = str(path).removeprefix(HUB)
    try:
        rows = _labelled(datasets.load_dataset(name, split="train"))
    except Exception as error:  # those of the hub, of pyarrow and of the system
        raise UserError(
            f"cannot load the split 'train' of the data set {name!r} ({_first_line(error)}): check "
            "name and connection, or give the path of local files of the same fields"
        ) from error
    return _arrow_table(path, rows)


def _labelled(loaded: Any) -> list[Cells]:
    """Rows of a `datasets.Dataset`, class labels by name."""
    import datasets

    labels = {
        name: feature
        for name, feature in loaded.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    return [{**row, **_class_names(row, labels)} for row in loaded]


def _train_split(path: Path, splits: Mapping[str, Any]) -> Any:
    if "train" not in splits:
        raise UserError(
            f"{path} has no split 'train' but {', '.join(map(repr, splits)) or 'none at all'}: "
            "give the path of one split's own folder"
        )
    return splits["train"]


def _class_names(row: Cells, labels: Mapping[str, Any]) -> dict[str, str | None]:
    """Class labels by name; null and -1 (how unlabelled rows are stored) as null."""
    return {
        name: None if row[name] is None or row[name] < 0 else label.int2str(row[name])
        for name, label in labels.items()
    }


READERS: Final[Mapping[str, Callable[[Path, Source, Skips], SourceTable]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "datasets": _read_datasets,
    "hub": _read_hub,
}
