"""Server and trainers die by SIGKILL, at any instant, and the run ends as if nothing had happened.

Every process is a real one, with keys, sockets and folders as `fedsdr deploy init` makes them; only
Flower is left out, whose part here is to start them again. Processes are forked from one that has
everything imported. Each kills itself at a random event: the instants before and after a file is
renamed or a line appended, a batch of rewrites stored, a stage of training, an answer sent.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsdr.core import files
from fedsdr.deploy.sites.init import init_federation
from fedsdr.recipe.load import load_recipe
from support import tiny_recipe
from support.processes import ending_with_tests
from support.repository import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 50
CLIENTS = ("anna", "ben")
PATIENCE = {"wait_seconds": 60.0, "round_seconds": 120.0, "prepare_seconds": 120.0}

# Reads {"role", "folder", "event", "log"} lines and forks a site for each, or {"poll": pid}.
NURSERY = """
import json, os, signal, sys
from pathlib import Path
import transformers.models.llama.modeling_llama
import fedsdr.deploy.sites.site, fedsdr.deploy.client.trainer, fedsdr.report.html
from fedsdr.core import files
from fedsdr.deploy.client import relay
from fedsdr.deploy.client import trainer
from fedsdr.distillation.cache import RewriteCache
from fedsdr.core.progress import silent_reporter
from fedsdr.federation import rounds
from fedsdr.training.local import LocalTrainer
from support.processes import ending_with_tests
from support.repository import REPOSITORY
from support.message_lines import Sockets

def watch(owner, name, left, counted):
    real = getattr(owner, name)
    def watched(*args, **options):
        pass_event(left, counted)
        done = real(*args, **options)
        pass_event(left, counted)
        return done
    setattr(owner, name, watched)

def pass_event(left, counted):
    counted[0] += 1
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def live(order):
    folder, left, counted = Path(order["folder"]), [order["event"]], [0]
    watch(os, "replace", left, counted)
    watch(files, "append_json_line", left, counted)
    watch(RewriteCache, "put", left, counted)
    if order["role"] == "server":
        watch(rounds, "save_checkpoint", left, counted)
        sockets = [Path(each) for each in order["sockets"]]
        fedsdr.deploy.sites.site.serve_folder(folder, lambda ttl: Sockets(sockets), pause=0.02)
        Path(order["log"] + ".events").write_text(str(counted[0]))
        os._exit(0)
    watch(LocalTrainer, "__call__", left, counted)
    watch(trainer, "_serve_one", left, counted)
    watch(relay, "write_frame", left, counted)
    fedsdr.deploy.sites.site.run_trainer(folder, silent_reporter())

for line in sys.stdin:
    order = json.loads(line)
    if "poll" in order:
        ended, status = os.waitpid(order["poll"], os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if ended else None, flush=True)
        continue
    child = os.fork()
    if child == 0:
        log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        try:
            live(order)
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(1)
    print(child, flush=True)
"""


class Nursery:
    """Starts processes, and tells how they ended."""

    def __init__(self, cache: Path) -> None:
        tests = str(REPOSITORY / "tests")
        path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "FEDSDR_CACHE": str(cache)},
        )

    def tell(self, order: dict[str, Any]) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        told = self.process.stdout.readline().strip()
        return None if told == "None" else int(told)

    def stop(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


class Sites:
    """A federation's processes, each started again when it has died."""

    def __init__(self, nursery: Nursery, out: Path, draw: random.Random) -> None:
        self.nursery, self.out, self.draw = nursery, out, draw
        self.kills: list[str] = []
        self.living: dict[str, int] = {}

    def start(self, role: str, most: int) -> None:
        """most: the largest number of events after which it dies; 0 for a life without end."""
        folder = self.out / role
        self.living[role] = self.nursery.tell(
            {
                "role": role, "folder": str(folder), "log": str(self.out / f"{role}.log"),
                "event": self.draw.randint(1, most) if most else 0,
                "sockets": [str(self.out / client / "trainer.sock") for client in CLIENTS],
            }
        )  # fmt: skip

    def run(self, most: dict[str, int], kills: int) -> None:
        """Until the server is done; after so many kills, none dies any more."""
        roles = ["server", *CLIENTS]
        for role in roles:
            self.start(role, most.get(role, most["client"]) if kills else 0)
        while True:
            for role in roles:
                status = self.nursery.tell({"poll": self.living[role]})
                if status is None:
                    continue
                if role == "server" and status == 0:
                    self.end()
                    return
                log = (self.out / f"{role}.log").read_text()
                assert status == -9, log[-3000:]
                self.kills.append(role)
                left = kills - len(self.kills) > 0
                self.start(role, most.get(role, most["client"]) if left else 0)
            time.sleep(0.02)

    def end(self) -> None:
        for client in CLIENTS:
            os.kill(self.living[client], 9)
            while self.nursery.tell({"poll": self.living[client]}) is None:
                time.sleep(0.01)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with ending_with_tests():
        nursery = Nursery(tmp_path_factory.mktemp("cache"))
        yield nursery
        nursery.stop()


def federation(folder: Path, nursery: Nursery, name: str, draw: random.Random) -> Sites:
    recipe = load_recipe(folder / "recipe.toml")
    init_federation(recipe, folder / name, "localhost", 8000)
    return Sites(nursery, folder / name, draw)


def left_behind(out: Path) -> dict[str, Any]:
    """All that a federation leaves, but for times."""
    found: dict[str, Any] = {
        str(path.relative_to(out / "server")): path.read_bytes()
        for path in (out / "server" / "run").rglob("*.safetensors")
    }
    for row in files.read_json_lines(out / "server" / "run" / "metrics.jsonl"):
        row.get("train", {}).pop("seconds", None)
        found[f"round {row['round']}"] = row
    for client in CLIENTS:
        private = out / client / "private"
        for path in private.rglob("*.safetensors"):
            place = path.relative_to(private).parts[2:]  # without the run's name
            found[f"{client}/{'/'.join(place)}"] = path.read_bytes()
    return found


def test_killed_anywhere_it_ends_the_same(tmp_path, nursery):
    tiny_recipe.write_recipe(
        tmp_path,
        federation={"rounds": 3},
        distill={"batch_size": 2},
        deployment=PATIENCE,
        data={
            "sources": [
                {"path": str(tmp_path / "data" / f"{c}.jsonl"), "client": c} for c in CLIENTS
            ]
        },
    )
    draw = random.Random(1)
    clean = federation(tmp_path, nursery, "clean", draw)
    clean.run({"server": 0, "client": 0}, kills=0)
    wanted = left_behind(tmp_path / "clean")
    assert len(wanted) > 8
    events = int((tmp_path / "clean" / "server.log.events").read_text())
    killed: list[str] = []
    for number in range(100):
        if len(killed) >= KILLS:
            break
        sites = federation(tmp_path, nursery, f"killed-{number}", draw)
        sites.run({"server": events, "client": 40}, kills=12)
        assert left_behind(sites.out) == wanted
        killed += sites.kills
    assert len(killed) >= KILLS
    assert {*killed} == {"server", *CLIENTS}
