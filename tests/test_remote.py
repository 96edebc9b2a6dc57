"""A federation over a line does what one in a process does, bit by bit."""

from pathlib import Path

import pytest

import tiny
from fedsdr import files
from fedsdr.deploy.server import serve
from fedsdr.progress import silent
from fedsdr.recipe import load_recipe
from fedsdr.run import run
from lines import client_sides, loopback

SAME = ("bytes_up", "bytes_down")


def pair(folder: Path, **sections: object) -> tuple[Path, Path]:
    """The folders of one recipe's runs, in process and over a line."""
    patience = {"wait_seconds": 5.0, "round_seconds": 20.0, "prepare_seconds": 20.0}
    recipe_file = tiny.setting(folder, deployment=patience, **sections)
    recipe = load_recipe(recipe_file)
    run(recipe, folder / "here", silent())
    sides = client_sides(recipe_file, folder / "sides")
    serve(recipe, folder / "there", loopback(sides), dict.fromkeys(sides), silent(), pause=0)
    return folder / "here", folder / "there"


def rows(folder: Path) -> list[dict]:
    found = files.read_json_lines(folder / "metrics.jsonl")
    for row in found:
        row.get("train", {}).pop("seconds", None)
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))


def test_the_same_recipe_gives_the_same_run(tmp_path):
    here, there = pair(tmp_path)
    assert (here / "checkpoint.safetensors").read_bytes() == (
        there / "checkpoint.safetensors"
    ).read_bytes()
    assert rows(here) == rows(there)
    assert files.read_json(here / "result.json") == files.read_json(there / "result.json")
    for client in tiny.CLIENTS:
        mine = there.parent / "sides" / client / "runs"
        [state] = mine.rglob("private/adapter_model.safetensors")
        other = here / "clients" / client / "private" / "adapter_model.safetensors"
        assert state.read_bytes() == other.read_bytes()
