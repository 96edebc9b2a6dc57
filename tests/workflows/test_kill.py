"""Killed at any instant and resumed, a run ends as if nothing had happened.

Processes are forked from one that has everything imported, since starting anew would take most
of the time; each is a whole `fedsdr run`, and dies by SIGKILL. Some die after a random time,
others just before or after a random write.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import tiny_recipe
from support.processes import ending_with_tests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

# Reads {"argv", "environment", "log", "event", "seconds"} lines; for each forks a process that
# runs the command, and writes its exit status. It is killed after `seconds`, if those are given,
# or kills itself at the given event: events are the instants before and after a file is renamed
# or appended to, or a batch of rewrites stored.
SERVER = """
import json, os, signal, sys, time
import transformers.models.llama.modeling_llama
import fedsdr.cli.main, fedsdr.core.files, fedsdr.report.html, fedsdr.workflows.run
import fedsdr.distillation.cache
import fedsdr.distillation.rewrite

fedsdr.distillation.rewrite.REWRITE_GROUP = 1  # so that few records are stored in several groups

def watch(owner, name, event):
    real = getattr(owner, name)
    def watched(*args, **options):
        pass_event(event)
        done = real(*args, **options)
        pass_event(event)
        return done
    setattr(owner, name, watched)

def pass_event(event):
    event[0] -= 1
    if event[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ.update(order["environment"])
        event = [order["event"]]
        watch(os, "replace", event)
        watch(fedsdr.core.files, "append_json_line", event)
        watch(fedsdr.distillation.cache.RewriteCache, "put", event)
        sys.argv = ["fedsdr", *order["argv"]]
        fedsdr.cli.main.main()
    ended, status = 0, 0
    if order["seconds"] is not None:
        end = time.monotonic() + order["seconds"]
        while not ended and time.monotonic() < end:
            time.sleep(0.001)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
    if not ended:
        ended, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Server:
    """Starts runs in processes of their own."""

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, folder: Path, *, event: int = 0, seconds: float | None = None) -> int:
        """The exit status of one attempt in `folder`, killed after so many events or seconds."""
        order = {
            "argv": ["run", str(self.recipe), "--out", str(folder / "out"), "--resume"],
            "environment": {"FEDSDR_CACHE": str(folder / "cache")},
            "log": str(folder / "log"),
            "event": event,
            "seconds": seconds,
        }
        folder.mkdir(exist_ok=True)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def stop(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    recipe = tiny_recipe.write_recipe(
        tmp_path_factory.mktemp("setting"),
        federation={"rounds": 4, "participation": 0.6},
        distill={"batch_size": 2},
    )
    with ending_with_tests():
        server = Server(recipe)
        yield server
        server.stop()


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    server.run(folder / "warm")  # the first run in a process may take longer
    assert server.run(folder) == 0, (folder / "log").read_text()
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a run; without clocks, and without what a killed write left behind."""
    out = folder / "out"
    found: dict[str, Any] = {}
    for path in out.rglob("*"):
        name = str(path.relative_to(out))
        if not path.is_file() or path.suffix == ".tmp":
            continue
        found[name] = path.read_bytes()
        if name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{**row, "train": timeless(row.get("train", {}))} for row in rows]
        if name == "summary.json":
            found[name] = timeless(json.loads(path.read_text()))
        if name in ("environment.json", "report.html"):
            found[name] = "of its time"
    return found


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("seconds", "resumed")}


def assert_equal(folder: Path, whole: Path) -> None:
    ours, theirs = contents(folder), contents(whole)
    adapter = "adapter_model.safetensors"
    assert {f"global/{adapter}", f"clients/anna/private/{adapter}"} < theirs.keys()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def phase(folder: Path) -> str:
    """How far a killed run came."""
    milestones = {
        "result.json": "reporting",
        "global": "finishing",
        "checkpoint.safetensors": "training",
        "partition.json": "distilling",
    }
    reached = [name for file, name in milestones.items() if (folder / "out" / file).exists()]
    return reached[0] if reached else "starting"


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_times(server, whole, tmp_path, seed):
    """Three kills within the time that a run takes, then on to the end."""
    began = time.perf_counter()
    assert server.run(tmp_path / "timed") == 0
    duration = time.perf_counter() - began
    draw = random.Random(seed)
    folder = tmp_path / "killed"
    seconds = draw.uniform(0.1, 0.8) * duration
    while server.run(folder, seconds=seconds) == 0:  # faster than the one that was timed
        shutil.rmtree(folder)
        seconds /= 2
    for _ in range(2):
        server.run(folder, seconds=draw.uniform(0.1, 0.8) * duration)
    assert server.run(folder) == 0, (folder / "log").read_text()
    assert_equal(folder, whole)


def test_killed_around_random_writes(server, whole, tmp_path):
    """Six runs killed again and again, in every phase: first after 1 to 6 events, then more."""
    draw = random.Random(0)
    phases: Counter[str] = Counter()
    for number in range(6):
        folder = tmp_path / str(number)
        event = number + 1
        while status := server.run(folder, event=event):
            assert status == -signal.SIGKILL, (folder / "log").read_text()
            phases[phase(folder)] += 1
            event = draw.randint(5, 60)
            assert phases.total() < 100
        assert_equal(folder, whole)
    assert {*phases} == {"starting", "distilling", "training", "finishing", "reporting"}, phases


def test_an_interrupt_says_how_to_go_on(server, whole, tmp_path):
    """The real command, interrupted as by Ctrl-C once it has trained a round."""
    log = tmp_path / "out" / "metrics.jsonl"
    args = [sys.executable, "-m", "fedsdr", "run", str(server.recipe)]
    environment = {**os.environ, "FEDSDR_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*args, "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 1):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.rstrip().endswith("interrupted: nothing is lost, go on with --resume")
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "summary.json").exists()
    assert not [*(tmp_path / "out").rglob("*.tmp")]
    assert server.run(tmp_path) == 0
    assert_equal(tmp_path, whole)


def test_an_interrupt_while_libraries_load_leaves_at_once(server, tmp_path):
    args = [sys.executable, "-m", "fedsdr", "run", str(server.recipe)]
    process = subprocess.Popen(
        [*args, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    )
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.startswith("interrupted")
    assert said.count("\n") == 1
