"""Finished cells in one file, without their models: evidence/cells.jsonl.xz, a cell a line.

From it the document can be written again, checked and gone on with (more seeds, cells that were
missing) on a machine that has run none of it.
"""

import json
import lzma
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from experiments.measure import EVIDENCE_FILE
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import (
    DISTILLATION_FILE,
    METRICS_FILE,
    PERSONAL_FILE,
    RECIPE_FILE,
    RESULT_FILE,
)

ARCHIVE: Final = "cells.jsonl.xz"
KEPT: Final = (
    DISTILLATION_FILE, EVIDENCE_FILE, METRICS_FILE, PERSONAL_FILE, RECIPE_FILE, RESULT_FILE,
)  # fmt: skip
TEXTS: Final = "clients/*/rewrites.jsonl"
CELL: Final = re.compile(r"[a-z0-9_]{1,80}-[0-9a-f]{12}/seed-\d{1,9}")
FILE: Final = re.compile(
    "|".join([*map(re.escape, KEPT), r"clients/[a-z]{1,40}(-\d{1,6})?/rewrites\.jsonl"])
)
LARGEST: Final = 2**30  # bytes of all files together: more would be no archive of cells

Files = Mapping[str, str]  # a cell's files -> what is in them


def pack_cells(cells: Path, folders: Iterable[Path], with_texts: Collection[Path]) -> bytes:
    """An archive of these finished cells below `cells`, the same bytes for the same cells; with
    the clients' rewrites of some of them."""
    lines = []
    for folder in sorted(folders):
        paths = [folder / name for name in KEPT if (folder / name).exists()]
        paths += sorted(folder.glob(TEXTS)) if folder in with_texts else []
        texts = {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in paths}
        lines.append(json.dumps({"cell": folder.relative_to(cells).as_posix(), "files": texts}))
    return lzma.compress("".join(line + "\n" for line in lines).encode())


def unpack_cells(archive: Path, cells: Path) -> int:
    """Put an archive's cells below `cells` where there is none of that name; returns how many
    those were.

    Raises `UserError` for what is no archive of cells, before anything is written.
    """
    found = dict(_cell(archive, line) for line in _lines(archive))
    new = {cell: its for cell, its in found.items() if not (cells / cell / EVIDENCE_FILE).exists()}
    for cell, its in new.items():
        # The file that says "finished" comes last.
        for name, text in sorted(its.items(), key=lambda each: each[0] == EVIDENCE_FILE):
            files.write_text(cells / cell / name, text)
    return len(new)


def _lines(archive: Path) -> list[bytes]:
    try:
        with lzma.open(archive) as file:
            content = file.read(LARGEST + 1)
    except (lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(f"cannot read the archive of cells {archive}: {error}") from error
    if len(content) > LARGEST:
        raise UserError(f"{archive} is no archive of cells: it holds more than {LARGEST} bytes")
    return content.splitlines()


def _cell(archive: Path, line: bytes) -> tuple[str, Files]:
    """KEY/seed-N and the files of this cell."""
    try:
        row: Any = json.loads(line)
        cell, its = row["cell"], dict(row["files"])
        for text in its.values():
            text.encode()  # which fails for what cannot be written
        if CELL.fullmatch(cell) and all(map(FILE.fullmatch, its)) and EVIDENCE_FILE in its:
            return cell, its
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise UserError(f"{archive} is no archive of cells: it holds {line[:80]!r}")
