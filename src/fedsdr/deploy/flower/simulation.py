"""Flower's simulation runtime: the same apps, with clients that live in Ray's workers.

An own SuperLink is started for it, on a free port, and ended with it, Ray's processes too.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.core.progress import Reporter
from fedsdr.deploy.flower.submit import (
    SUBMIT_LOCK,
    flower_environment,
    lock_submission,
    submit_federation,
)
from fedsdr.deploy.server.serve import check_served
from fedsdr.deploy.sites.folder import ROSTER
from fedsdr.deploy.sites.scripts import program_folder, write_app
from fedsdr.recipe.load import load_recipe, recipe_differences, to_toml
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.prepare import prepare_run

UP: Final = 60.0  # seconds that a SuperLink may take to start


def simulate_federation(
    recipe: Recipe, out: Path, cpus: float, gpus: float, reporter: Reporter
) -> None:
    """Run a recipe in a folder, or go on there. cpus, gpus: what each of Ray's workers gets.

    Raises `UserError` where another process does so, or the folder holds something else.
    """
    clients = [client.name for client in prepare_run(recipe).clients]
    check_served(recipe, clients)
    out = out.resolve()
    if not (out / SUBMIT_LOCK).exists():
        _check_out(out, recipe)  # before anything is made
    with lock_submission(out):
        _check_out(out, recipe)  # another may have ended just before
        port = free_port()
        files.write_text(out / RECIPE_FILE, to_toml(recipe))
        write_app(out, port)
        files.write_json(out / ROSTER, {"unsigned": clients})
        resources = (
            f"num-supernodes={len(clients)} client-resources-num-cpus={cpus:g} "
            f"client-resources-num-gpus={gpus:g}"
        )
        with running_superlink(out, port):
            submit_federation(out, reporter, options=("--federation-config", resources))


def _check_out(out: Path, recipe: Recipe) -> None:
    """Raise `UserError` unless `out` is new, or a simulation of the same recipe to go on with."""
    if (out / ROSTER).exists():
        if changed := recipe_differences(load_recipe(out / RECIPE_FILE), recipe):
            raise UserError(
                f"{out} holds a run of another recipe (they differ in {', '.join(changed)}): "
                "give another --out"
            )
    elif out.exists() and any(path.name != SUBMIT_LOCK for path in out.iterdir()):
        raise UserError(f"{out} is not empty and nothing is written over: give another --out")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_superlink(folder: Path, port: int) -> Iterator[None]:
    """A SuperLink of the simulation runtime, its processes ended with it."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    with open(logs / "superlink.log", "ab") as log:
        process = subprocess.Popen(
            [
                str(Path(program_folder()) / "flower-superlink"), "--insecure", "--simulation",
                "--host", "127.0.0.1", "--port", str(port),
                "--database", str(folder / "flower" / "state.db"),
                "--disable-runtime-dependency-installation",
            ],
            env=flower_environment(folder), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for_port(process, port, logs / "superlink.log")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):  # workers that did not hear
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_port(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    end = time.monotonic() + UP
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise UserError(f"the SuperLink did not start: see {log}")
