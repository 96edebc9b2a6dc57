"""Finished cells in one file: the document follows from it, and nothing else gets out of it."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import plan
from experiments.__main__ import app as main
from experiments.archive import CELL, unpack_cells
from experiments.document import write_document
from experiments.plan import planned_cells
from experiments.runner import cell_folder
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.recipe.load import to_toml
from support.evidence_cells import fake
from support.experiment_commands import run_command
from support.fuzzing import fuzzed, mutated, state

NAMES = ["flattening", "paradox"]
CELLS = planned_cells(NAMES)


def archive(path: Path, *rows: Any) -> Path:
    """An archive of whatever rows."""
    path.write_bytes(lzma.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a document."""
    out = tmp_path_factory.mktemp("whole")
    for index, cell in enumerate(CELLS):
        for seed in range(3):
            folder = cell_folder(out, cell, seed)
            fake(folder, 30 + index % 40 + 0.1 * seed)
            files.write_text(folder / RECIPE_FILE, to_toml(cell.recipe(seed)))
    write_document(out, [0, 1, 2], NAMES)
    return out


@pytest.fixture(scope="module")
def packed(whole: Path) -> Path:
    return whole / "evidence" / "cells.jsonl.xz"


def test_the_document_from_an_archive_is_the_document(whole, packed, tmp_path):
    assert unpack_cells(packed, tmp_path / "cells") == 3 * len(CELLS)
    write_document(tmp_path, [0, 1, 2], NAMES)
    for path in (whole / "evidence.md", *(whole / "evidence").iterdir()):
        if path.suffix != ".svg":  # in which elements are numbered at random
            assert (tmp_path / path.relative_to(whole)).read_bytes() == path.read_bytes(), path


def test_texts_are_kept_of_those_cells_alone_that_are_read(packed):
    rows = [json.loads(line) for line in lzma.decompress(packed.read_bytes()).splitlines()]
    whose = [row["cell"] for row in rows if any("rewrites" in name for name in row["files"])]
    assert {cell.split("/")[0] for cell in whose} == {c.key for c in plan.cells_with_texts()}
    assert f"{plan.Cell('fedsd').key}/seed-0" in whose


def test_what_is_there_already_stays(packed, tmp_path):
    mine = cell_folder(tmp_path, CELLS[0], 1)
    fake(mine, 77.0)
    before = state(mine)
    assert unpack_cells(packed, tmp_path / "cells") == 3 * len(CELLS) - 1
    assert state(mine) == before
    assert unpack_cells(packed, tmp_path / "cells") == 0


def test_the_command_runs_none_of_them_again(whole, packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.runner.run_group", None)
    words = ["--only", ",".join(NAMES), "--seeds", "0,1,2", "--cells", packed]
    assert run_command(main, "--out", tmp_path / "o", *words) == 0
    assert f"{3 * len(CELLS)} finished cells" in capsys.readouterr().err
    assert (tmp_path / "o" / "evidence.md").read_text() == (whole / "evidence.md").read_text()


GOOD = "fedavg-0123456789ab/seed-0"
FILES = {"result.json": '{"general": 1.0}', "evidence.json": '{"answers": []}'}
ROW = {"cell": GOOD, "files": FILES}


@pytest.mark.parametrize(
    "row",
    [
        {"cell": "../" + GOOD, "files": FILES},
        {"cell": "/" + GOOD, "files": FILES},
        {"cell": GOOD + "/..", "files": FILES},
        {"cell": GOOD + "\n", "files": FILES},
        {"cell": 3, "files": FILES},
        {"files": FILES},
        {"cell": GOOD},
        {"cell": GOOD, "files": {**FILES, "../x.json": ""}},
        {"cell": GOOD, "files": {**FILES, "clients/../rewrites.jsonl": ""}},
        {"cell": GOOD, "files": {**FILES, "clients/a/private/rewrites.jsonl": ""}},
        {"cell": GOOD, "files": {**FILES, "checkpoint.safetensors": ""}},
        {"cell": GOOD, "files": {**FILES, "result.json": {}}},
        {"cell": GOOD, "files": {**FILES, "result.json": "\ud800"}},
        {"cell": "a" * 300 + "-0123456789ab/seed-0", "files": FILES},
        {"cell": GOOD, "files": {"result.json": "{}"}},
        {"cell": GOOD, "files": "evidence.json"},
        [],
        None,
    ],
)
def test_an_archive_of_anything_else_is_refused_whole(row, tmp_path):
    path = archive(tmp_path / "a.jsonl.xz", ROW, row)
    with pytest.raises(UserError, match=r"a\.jsonl\.xz is no archive of cells: it holds"):
        unpack_cells(path, tmp_path / "cells")
    assert sorted(tmp_path.iterdir()) == [path]
    assert unpack_cells(archive(path, ROW), tmp_path / "cells") == 1


@pytest.mark.parametrize("content", [b"", b"text", b"\xfd7zXZ\x00", lzma.compress(b"x")[:-1]])
def test_what_is_no_archive_is_an_error_for_people(content, tmp_path):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the archive of cells .*a\.jsonl\.xz"):
        unpack_cells(path, tmp_path / "cells")
    with pytest.raises(UserError, match="cannot read"):
        unpack_cells(tmp_path / "none", tmp_path / "cells")


def test_an_archive_of_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.archive.LARGEST", 50)
    with pytest.raises(UserError, match="more than 50 bytes"):
        unpack_cells(archive(tmp_path / "a.jsonl.xz", ROW), tmp_path / "cells")


ORIGINALS = st.just((json.dumps(ROW) + "\n").encode())


@fuzzed
@given(content=mutated(ORIGINALS) | mutated(ORIGINALS.map(lzma.compress)))
def test_mutated_archives(content, tmp_path_factory):
    """Cells or a clear error; what is written has been named in a cell's own way."""
    folder = tmp_path_factory.mktemp("mutated")
    path = folder / "a.jsonl.xz"
    path.write_bytes(content if content.startswith(b"\xfd7zXZ") else lzma.compress(content))
    try:
        unpack_cells(path, folder / "cells")
    except UserError:
        assert not (folder / "cells").exists()
    else:
        for file in (p for p in (folder / "cells").rglob("*") if p.is_file()):
            key, seed, *name = file.relative_to(folder / "cells").parts
            assert CELL.fullmatch(f"{key}/{seed}")
            assert "/".join(name) in FILES
