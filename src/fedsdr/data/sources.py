"""From files to records: JSONL, JSON, CSV and `datasets` folders, with every error placed."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from fedsdr import seeds
from fedsdr.data.layouts import records
from fedsdr.data.records import Record
from fedsdr.data.rows import Cells, Places, Row, RowError, convert_all, kind
from fedsdr.errors import UserError
from fedsdr.sections.data import HUB, Source

Table = tuple[Places, list[Row]]
SUFFIXES: Final[Mapping[str, str]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
}


def read_source(source: Source, seed: int) -> list[Record]:
    """The records of one source, in file order; with a `limit`, that many drawn by `seed`
    (all where there are fewer).

    Raises `UserError`, naming file and line or row, for whatever cannot be read.
    """
    places, rows = read_rows(source)
    found = records(places, rows, source)
    if source.limit is None or source.limit >= len(found):
        return found
    generator = seeds.generator(seed, "limit", Path(source.path).name)
    drawn = torch.randperm(len(found), generator=generator)[: source.limit]
    return [found[index] for index in sorted(drawn.tolist())]


class Skipped(NamedTuple):
    """What `empty = "skip"` left out of one source."""

    client: str  # "" where the records are pooled
    file: str
    skipped: int
    rows: int


def skipped_rows(sources: Sequence[Source]) -> list[Skipped]:
    """Rows without a response, of every source that says to skip them, whatever its limit."""
    found = []
    for source in sources:
        if source.empty == "skip":
            places, rows = read_rows(source)
            left_out = len(rows) - len(records(places, rows, source))
            found.append(Skipped(source.client or "", places.path.name, left_out, len(rows)))
    return found


def read_rows(source: Source) -> Table:
    """A source's rows as they stand in the file, and how they are numbered."""
    path = Path(source.path)
    places, rows = READERS[_format(path, source.format)](path, source.encoding)
    if not rows:
        raise UserError(f"{path} holds no rows: give a file with data, or remove the source")
    return places, rows


def _format(path: Path, wanted: str) -> str:
    """The format's name, once it is sure that `path` may have it."""
    if str(path).startswith(HUB):
        return "hub"
    try:
        exists, folder = path.exists(), path.is_dir()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not exists:
        raise UserError(
            f"{path} does not exist: give the path of a JSONL, JSON or CSV file or of a "
            f"`datasets` folder, or {HUB}OWNER/NAME for a data set of the hub"
        )
    if folder != (wanted == "datasets") and wanted != "auto":
        kind, remedy = ("a folder", "datasets") if folder else ("a file", "jsonl, json or csv")
        raise UserError(f'{path} is {kind}, not of format = "{wanted}": use auto or {remedy}')
    if wanted != "auto":
        return wanted
    if folder:
        return "datasets"
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path}: cannot tell the format from {path.suffix!r} (known are "
            f'{", ".join(SUFFIXES)}): add format = "jsonl", "json" or "csv"'
        )
    return SUFFIXES[path.suffix.lower()]


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot read {path}: {error}: check the path and its permissions")


def _decode(path: Path, encoding: str) -> str:
    """The file's text, without a byte order mark. Raises `UserError` where there is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    other = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start : error.start + 1].hex()
        raise UserError(
            f"{path}:{line}: not {encoding}: byte 0x{byte} at offset "
            f"{error.start} ({error.reason}): name the file's encoding, "
            f'e.g. encoding = "{other}"'
        ) from error
    except (LookupError, ValueError) as error:  # no such codec, or one that is not for text
        raise UserError(
            f"{path}: cannot decode with encoding = {encoding!r} ({error}): use a codec of "
            f'Python\'s, e.g. encoding = "utf-8" or "{other}"'
        ) from error
    if not text.strip("\ufeff \t\r\n"):
        raise UserError(f"{path} is empty: give a file with data, or remove the source")
    return text.removeprefix("\ufeff")


def _read_jsonl(path: Path, encoding: str) -> Table:
    places = Places(path, "line")
    # Only "\n" ends a line: str.splitlines would also break at characters allowed in JSON texts.
    lines = enumerate(_decode(path, encoding).split("\n"), start=1)
    filled = [(number, line) for number, line in lines if line.strip()]
    return places, convert_all(places, filled, _parse_line)


def _parse_line(number: int, line: str) -> Row:
    try:
        return number, _cells(json.loads(line))
    except (ValueError, RecursionError) as error:
        remedy = 'mend the line (for one JSON list over many lines: format = "json")'
        raise RowError("not valid JSON", _json_fault(error), remedy) from error


def _json_fault(error: Exception) -> str:
    """What is wrong with a JSON text, and in which column; the line is named before it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _cells(value: Any) -> Cells:
    if not isinstance(value, dict):
        remedy = 'write rows as {"column": "text", ...}'
        raise RowError("not an object", f"it is {kind(value)}", remedy)
    return value


def _read_json(path: Path, encoding: str) -> Table:
    places = Places(path, "row")
    text = _decode(path, encoding)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data" and error.lineno > 1
        remedy = 'for one object a line, set format = "jsonl"' if lines else "mend the file"
        place = f"{path}:{error.lineno}"
        raise UserError(f"{place}: not valid JSON ({_json_fault(error)}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}): mend the file") from error
    items = enumerate(_only_list(path, value), start=1)
    return places, convert_all(places, items, lambda number, item: (number, _cells(item)))


def _only_list(path: Path, value: Any) -> list[Any]:
    """The list of rows: the file's value itself, or the one list in its object."""
    if isinstance(value, list):
        return value
    found = kind(value)
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        if len(lists) == 1:
            return list(lists[0])
        found = f"an object with {len(lists)} lists"
    raise UserError(
        f"{path} holds {found}: it must be a list of objects, or an object with one such "
        'list (for one object a line: format = "jsonl")'
    )


def _read_csv(path: Path, encoding: str) -> Table:
    places = Places(path, "line")
    (_, header), *lines = _csv_lines(path, _decode(path, encoding))
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{path}: column {repeated[0]!r} stands twice in the header: rename one")

    def convert(number: int, cells: Sequence[str]) -> Row:
        if len(cells) != len(header):
            problem = f"too {'many' if len(cells) > len(header) else 'few'} cells"
            detail = f"{len(cells)} for the header's {len(header)} columns"
            raise RowError(problem, detail, "put texts with commas or line breaks in quotes")
        return number, dict(zip(header, cells, strict=True))

    return places, convert_all(places, lines, convert)


def _csv_lines(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """(first line, cells) of each row that is not blank; strict, or a quote that is never
    closed would swallow the rest of the file."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[tuple[int, list[str]]] = []
    start = 1
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
    return lines


def _read_datasets(path: Path, encoding: str) -> Table:
    """Rows of a `datasets` folder, of its split "train" where it has several. `encoding` does
    not matter: its texts are Unicode."""
    del encoding
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
    return Places(path, "row"), list(enumerate(rows, start=1))


def _read_hub(path: Path, encoding: str) -> Table:
    """Rows of the split "train" of a data set by name, from the hub or its local cache."""
    del encoding
    import datasets

    name = str(path).removeprefix(HUB)
    try:
        rows = _labelled(datasets.load_dataset(name, split="train"))
    except Exception as error:  # those of the hub, of pyarrow and of the system
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"cannot load the split 'train' of the data set {name!r} ({reason}): check name and "
            "connection, or give the path of local files of the same fields"
        ) from error
    return Places(path, "row"), list(enumerate(rows, start=1))


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


READERS: Final[Mapping[str, Callable[[Path, str], Table]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "datasets": _read_datasets,
    "hub": _read_hub,
}
