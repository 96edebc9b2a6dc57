"""Two processes in one folder: the second is refused in one line, whoever they are."""

import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import LOCK_FILE
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.flower import simulation
from fedsdr.deploy.flower.simulation import simulate_federation
from fedsdr.deploy.flower.submit import SUBMIT_LOCK, run_federation
from fedsdr.deploy.protocol.signing import UNSIGNED
from fedsdr.deploy.server.admission import ServerConnection
from fedsdr.deploy.server.serve import serve_federation
from fedsdr.deploy.sites.folder import ROSTER, SERVER_FILE
from fedsdr.deploy.sites.site import run_trainer, serve_folder
from fedsdr.recipe.load import load_recipe, to_toml
from fedsdr.workflows.prepare import PreparedRun
from fedsdr.workflows.run_folder import check_folder, locked_folder
from support import tiny_recipe


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A setting of which no model is ever loaded."""
    folder = tmp_path_factory.mktemp("lock")
    tiny_recipe.write_recipe(folder)
    return folder


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreparedRun, "load", lambda *_: pytest.fail("loads a model"))


def holder(folder: Path, lock: str = LOCK_FILE) -> int:
    """A process that holds a folder until it is killed."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with locked_folder(folder, lock=lock):
            os.write(told, b"x")
            signal.pause()
        os._exit(0)
    assert os.read(ready, 1) == b"x"
    os.close(ready), os.close(told)
    return child


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    """The process that holds `out`."""
    child = holder(tmp_path / "out")
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def in_use(folder: Path, child: int) -> str:
    return f"{folder} is in use by process {child} on {socket.gethostname()}: wait until it ends"


COMMANDS: dict[str, Sequence[str]] = {
    "run": ["run", "recipe.toml"],
    "resumed": ["run", "recipe.toml", "--resume"],
    "compare": ["compare", "recipe.toml"],
    "distill": ["distill", "recipe.toml"],
    "diagnose": ["diagnose", "recipe.toml"],
    "demo": ["demo"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_refused_before_a_model_is_loaded(home, tmp_path, monkeypatch, command, held):
    monkeypatch.chdir(home)
    done = CliRunner().invoke(app, [*COMMANDS[command], "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.stderr == f"error: {in_use(tmp_path / 'out', held)}, or give another --out\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]


SITES: dict[str, Callable[[Path, Any], object]] = {
    "a run": lambda out, recipe: serve_federation(
        recipe,
        out,
        ServerConnection(None, {"anna": UNSIGNED}, UNSIGNED),  # type: ignore[arg-type]
        silent_reporter(),
    ),
    "a server": lambda out, recipe: serve_folder(out, lambda seconds: None),  # type: ignore[arg-type, return-value]
    "a trainer": lambda out, recipe: run_trainer(out, silent_reporter()),
}


@pytest.mark.parametrize("site", SITES)
def test_a_second_process_of_a_site_is_refused(home, tmp_path, site, held):
    before = os.umask(0o022)
    try:
        with pytest.raises(UserError, match=in_use(tmp_path / "out", held)):
            SITES[site](tmp_path / "out", load_recipe(home / "recipe.toml"))
    finally:
        os.umask(before)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]


SUBMITTING: dict[str, Callable[[Path, Any], object]] = {
    "simulate": lambda out, recipe: simulate_federation(recipe, out, 1.0, 0.0, silent_reporter()),
    "run": lambda out, recipe: run_federation(out, silent_reporter(), 1),
}


@pytest.mark.parametrize("command", SUBMITTING)
def test_a_second_command_that_submits_is_refused_before_it_writes(home, tmp_path, command):
    """The first may be waiting for its ServerApp, which locks the folder only once it is up."""
    out, recipe = tmp_path / "out", load_recipe(home / "recipe.toml")
    files.write_json(out / SERVER_FILE, {"port": 9000})
    files.write_json(out / ROSTER, {"unsigned": ["anna"]})
    (out / "recipe.toml").write_text(to_toml(recipe))
    child = holder(out, SUBMIT_LOCK)
    before = {path.name for path in out.iterdir()}
    try:
        with pytest.raises(UserError, match=in_use(out, child)):
            SUBMITTING[command](out, recipe)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert {path.name for path in out.iterdir()} == before


def test_a_simulation_that_was_killed_before_it_wrote_anything_leaves_no_folder_of_others(
    home, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    child = holder(out, SUBMIT_LOCK)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    began = []
    monkeypatch.setattr(
        simulation, "running_superlink", lambda *_: began.append(1) or nullcontext()
    )
    monkeypatch.setattr(simulation, "submit_federation", lambda *_, **__: None)
    recipe = load_recipe(home / "recipe.toml")
    simulate_federation(recipe, out, 1.0, 0.0, silent_reporter())
    assert began == [1]
    assert not (out / SUBMIT_LOCK).exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs").touch()
    with pytest.raises(UserError, match="is not empty and nothing is written over"):
        simulate_federation(recipe, tmp_path / "full", 1.0, 0.0, silent_reporter())


def test_a_lock_ends_with_its_process_and_what_is_left_of_it_is_no_run(home, tmp_path):
    out, recipe = tmp_path / "out", load_recipe(home / "recipe.toml")
    child = holder(out)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (out / LOCK_FILE).exists()
    check_folder(out, recipe, resume=False)
    with (
        locked_folder(out),
        pytest.raises(UserError, match=f"process {os.getpid()} on"),
        locked_folder(out),
    ):
        pass
    assert list(out.iterdir()) == []


def test_folders_in_which_nothing_came_to_be_are_removed(tmp_path):
    with locked_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with locked_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_a_lock_that_its_holder_removes_meanwhile_keeps_nobody_out(tmp_path, monkeypatch):
    """Opened before the removal and locked after it, a file is a lock of nothing."""
    real = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        (tmp_path / LOCK_FILE).unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with (
        locked_folder(tmp_path),
        pytest.raises(UserError, match="is in use"),
        locked_folder(tmp_path),
    ):
        pass


def test_a_file_system_without_locks_is_no_place_for_a_run(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(UserError, match="Function not implemented: give another --out"):
        locked_folder(tmp_path / "out").__enter__()
    assert not (tmp_path / "out" / LOCK_FILE).exists()
