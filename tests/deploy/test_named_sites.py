"""Clients whose names are no names of folders: their sites, their messages, their runs."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from fedsdr.core.client_names import client_folder_name
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.protocol.messages import Request, decode_request, encode_message
from fedsdr.deploy.protocol.signing import UNSIGNED
from fedsdr.deploy.protocol.wire import WireError
from fedsdr.deploy.server.admission import ServerConnection
from fedsdr.deploy.server.serve import serve_federation
from fedsdr.deploy.sites.folder import load_site
from fedsdr.deploy.sites.init import client_ids, init_federation
from fedsdr.evaluate.benchmarks.results import result_path
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.finished import open_finished
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe
from support.finished_runs import read_json, same_weights
from support.message_lines import client_sides, loopback

NAMES = ["Klinik Süd", "病院", "-rf", "L'Hôpital & (Co)"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("names")
    file = tiny_recipe.write_recipe(folder, federation={"rounds": 1, "targets": "two_stream"})
    paths = tiny_recipe.write_data_files(folder / "data", [f"c{k}" for k in range(len(NAMES))])
    sources = [{"path": str(path), "client": name} for path, name in zip(paths, NAMES, strict=True)]
    tables = {"data": {"sources": sources, "held_out": 0.2}}
    changed = load_recipe(file).model_dump(mode="json", exclude_none=True) | tables
    file.write_text(tomli_w.dumps(changed))
    return load_recipe(file)


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("run")
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        run_recipe(recipe, folder / "out", silent_reporter())
    return folder / "out"


def test_a_run_shows_names_as_they_are_written(run):
    finished = open_finished(run)
    assert sorted(finished.model_names()[2:]) == sorted(f"client:{name}" for name in NAMES)
    assert [row["name"] for row in read_json(run / "partition.json")] == NAMES
    for name in NAMES:
        assert finished.place(f"client:{name}") == (run, name)
        assert finished.adapters(f"client:{name}")
        assert (run / "clients" / client_folder_name(name) / "private").is_dir()
        assert len(result_path(run, f"client:{name * 20}", "mmlu").parent.name.encode()) <= 255
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in NAMES[:3])


def test_a_federation_of_them_is_the_run(recipe, run, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(run.parent / "cache"))
    sides = client_sides(recipe, tmp_path / "sides")
    line = loopback(sides)
    connection = ServerConnection(line, dict.fromkeys(NAMES, UNSIGNED), UNSIGNED, pause=0.001)
    serve_federation(recipe, tmp_path / "out", connection, silent_reporter())
    assert same_weights(run / "global", tmp_path / "out" / "global")


def test_sites_have_safe_folders_and_scripts_that_only_speak_of_names(recipe, tmp_path):
    init_federation(recipe, tmp_path / "fed", "localhost", 8000)
    assert list(load_site(tmp_path / "fed" / "server").roster) == NAMES
    for name in NAMES:
        site = tmp_path / "fed" / client_folder_name(name)
        assert read_json(site / "client.json") == {"id": name}
        script = (site / "start.sh").read_text()
        [line] = [line for line in script.splitlines() if line.startswith("echo")]
        said = subprocess.run(
            ["sh", "-c", line], env={"PWD": "x"}, capture_output=True, text=True, check=True
        )
        assert said.stdout.startswith(f"client {name}; logs in ")


def test_names_travel_as_they_are_written():
    request = Request("fit", "run", "recipe", "anna", "fedsdr", 3)
    for name in NAMES:
        assert decode_request(encode_message(replace(request, client=name))).client == name
    for name in ("a/b", "..", "a\n", ""):
        with pytest.raises(WireError, match="no name of a client"):
            encode_message(replace(request, client=name))


def test_two_names_of_one_folder_are_no_federation(recipe):
    lab = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": ()})})
    with pytest.raises(UserError, match="two clients would be called"):
        client_ids(lab, ["Anna", "anna"])
