"""Finished cells in one file, without their models: evidence/cells.jsonl.xz, a cell a line.

From it the document can be written again, checked and gone on with (more seeds, cells that were
missing) on a machine that has run none of it.
"""

import json
import lzma
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from experiments.measure import EVIDENCE_FILE
from experiments.plan import portable_recipe
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import (
    CLIENTS_FOLDER,
    DISTILLATION_FILE,
    METRICS_FILE,
    PERSONAL_FILE,
    RECIPE_FILE,
    RESULT_FILE,
)
from fedsdr.recipe.load import load_recipe, to_toml

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
        row = {"cell": folder.relative_to(cells).as_posix(), "files": without_owners_data(texts)}
        lines.append(json.dumps(row))
    return lzma.compress("".join(line + "\n" for line in lines).encode())


def without_owners_data(texts: Files) -> Files:
    """A cell's files as they may be passed on: without paths of this machine and, where the clients
    hold files of others, without these files' records."""
    if RECIPE_FILE not in texts:
        return texts
    recipe = load_recipe(tomllib.loads(texts[RECIPE_FILE]))
    portable = portable_recipe(recipe)
    if portable == recipe:
        return texts
    kept = {**texts, RECIPE_FILE: to_toml(portable)}
    if not recipe.data.sources:
        return kept
    if DISTILLATION_FILE in kept:
        clients = json.loads(kept[DISTILLATION_FILE])["clients"]
        kept[DISTILLATION_FILE] = json.dumps({"clients": clients})
    return {name: text for name, text in kept.items() if not name.startswith(CLIENTS_FOLDER)}


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
