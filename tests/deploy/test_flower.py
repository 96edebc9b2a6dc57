"""The same recipe on Flower itself: its simulation runtime, and a deployment as the guide has it.

Real SuperLink, SuperExec, SuperNode and Ray processes on this machine's loopback, with TLS and
authentication where the guide has them. What they compute is compared with a run in one process,
bit by bit.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsdr.core import files
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.flower.simulation import free_port
from fedsdr.deploy.flower.submit import flower_environment
from fedsdr.deploy.protocol.signing import new_key
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.methods import method_folders
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe
from support.flower_processes import (
    FEDSDR,
    Scripts,
    federation,
    fedsdr,
    give_free_ports,
    kill,
    running,
)
from support.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CHECKPOINT = "checkpoint.safetensors"
CLIENTS = ("anna", "ben")
FAMILIES = [
    "fedavg", "fedsd", "local", "fedsdr+scaffold", "fedyogi", "fedsdr+flexlora", "fedsa",
    "fedsdr+ditto", "median", "fedsdr+int8",
]  # fmt: skip
PATIENCE = {"wait_seconds": 300.0, "round_seconds": 300.0, "prepare_seconds": 300.0}


@pytest.fixture(autouse=True)
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    with federation(tmp_path) as scripts:
        yield scripts


def setting(folder: Path) -> Path:
    sources = [{"path": str(folder / "data" / f"{c}.jsonl"), "client": c} for c in CLIENTS]
    return tiny_recipe.write_recipe(
        folder,
        federation={"rounds": 2},
        evaluate={"every": 0},
        data={"sources": sources},
        deployment=PATIENCE,
    )


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The run in one process."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    run_recipe(load_recipe(setting(tmp_path)), tmp_path / "here", silent_reporter())
    return tmp_path / "here"


def same(here: Path, there: Path) -> None:
    assert (here / CHECKPOINT).read_bytes() == (there / CHECKPOINT).read_bytes()
    assert files.read_json(here / "result.json") == files.read_json(there / "result.json")


def test_the_simulation_runtime_gives_the_same_run(tmp_path, monkeypatch):
    """Of every family of algorithms."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    recipe_file = setting(tmp_path)
    recipe_file.write_text(f"baselines = {json.dumps(FAMILIES)}\n{recipe_file.read_text()}")
    recipe = load_recipe(recipe_file)
    run_recipe(recipe, tmp_path / "here", silent_reporter())
    out = tmp_path / "simulated"
    assert "report:" in fedsdr("deploy", "simulate", str(recipe_file), "--out", str(out))
    for folder in method_folders(recipe, tmp_path / "here").values():
        same(folder, out / "run" / folder.relative_to(tmp_path / "here"))
    assert fedsdr("status", str(out)).count("2 of 2") == len(FAMILIES) + 1
    for client in CLIENTS:
        folder = out / "run" / "clients" / client
        assert folder.stat().st_mode & 0o777 == 0o700
        assert files.read_json_lines(folder / "egress.jsonl")
    wait_until("Flower's processes end", 30, lambda: not running(str(out)))


@pytest.mark.slow(minutes=6)
def test_a_deployment_as_in_the_guide(here, tmp_path, scripts: Scripts):
    """And five deaths on the way: of the SuperLink, the SuperExec, the ServerApp, of a client's
    trainer and of another's SuperNode."""
    out, port = tmp_path / "federation", free_port()
    recipe = str(tmp_path / "recipe.toml")
    fedsdr("deploy", "init", recipe, "--out", str(out), "--host", "localhost", "--port", str(port))
    server = out / "server"
    give_free_ports([out / client for client in CLIENTS])
    scripts.start(server / "start.sh")
    log = server / "logs" / "superlink.log"
    wait_until("the SuperLink is up", 120, lambda: log.exists() and "running on" in log.read_text())
    unknown_nodes_get_nothing(out, port)
    assert "anna, ben" in fedsdr("deploy", "register", str(server))
    assert "all were already" in fedsdr("deploy", "register", str(server))
    for client in CLIENTS:  # not earlier: nodes that are not registered die and are started anew
        scripts.start(out / client / "start.sh")
    with scripts.submitted(server) as submitted:
        metrics = server / "run" / "metrics.jsonl"
        wait_until("the rounds begin", 400, metrics.exists)
        kill("flower-superlink", str(port))
        kill("fedsdr deploy trainer", where=out / "anna")
        wait_until("round 1 is done", 400, lambda: len(files.read_json_lines(metrics)) > 1)
        kill("flower-superexec", str(port))
        kill("fedsdr.deploy.flower.supernode", where=out / "ben" / "relay")
        kill("flwr-serverapp", str(port))
        told = submitted.wait(700)
    assert "attempt 2 of 5" in told
    same(here, server / "run")
    shown = fedsdr("status", str(server))
    assert "finished" in shown
    assert "2 of 2" in shown
    assert "2 hello, 2 prepare" in fedsdr("status", str(out / "ben"))  # of two ServerApps
    for client in CLIENTS:
        private = out / client / "private"
        assert {p.stat().st_mode & 0o077 for p in private.rglob("*") if p.is_file()} == {0}
        assert (out / client / "trainer.sock").stat().st_mode & 0o777 == 0o600


def unknown_nodes_get_nothing(out: Path, port: int) -> None:
    """A node without a registered key, and one that trusts another authority, are turned away."""
    new_key(out / "stranger.key")
    programs = flower_environment(out / "server")
    words = [
        str(FEDSDR.with_name("flower-supernode")), "--superlink", f"localhost:{port}",
        "--auth-supernode-private-key", str(out / "stranger.key"), "--max-retries", "1",
        "--host", "127.0.0.1", "--port", str(free_port()), "--root-certificates",
    ]  # fmt: skip

    def turned_away(authority: Path) -> str:
        """What a node says before it ends."""
        said = out.parent / "node.log"
        with open(said, "wb") as file:  # a pipe would be held open by what it starts
            node = subprocess.Popen(
                [*words, str(authority)], stdout=file, stderr=file, env=programs,
                start_new_session=True,
            )  # fmt: skip
        try:
            wait_until(
                "the node gives up", 200,
                lambda: node.poll() is not None or "Exit Code" in said.read_text(),
            )  # fmt: skip
        finally:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        return said.read_text()

    assert "Failed to activate" in turned_away(out / "anna" / "relay" / "ca.crt")
    recipe, others = str(out.parent / "recipe.toml"), out.parent / "others"
    fedsdr("deploy", "init", recipe, "--out", str(others), "--host", "localhost")
    assert "Exit Code" in turned_away(others / "anna" / "relay" / "ca.crt")
    assert "Activated" not in (out / "server" / "logs" / "superlink.log").read_text()
