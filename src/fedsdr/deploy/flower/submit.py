"""Submitting a federation's app to its SuperLink, and seeing it to its end.

A ServerApp that dies is not started again by Flower. Our checkpoint lets a new one go on where it
stopped, so it is submitted again until the run is finished, or has failed for a reason that it
tells.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.deploy.sites.folder import NODES, STATUS, only_one, server_port
from fedsdr.deploy.sites.scripts import fill_template, program_folder
from fedsdr.workflows.run_folder import locked_folder

LINK: Final = "federation"  # the SuperLink's name in flower/config.toml
SUBMIT_LOCK: Final = ".submit.lock"  # of the command, whose ServerApp locks the folder itself
LINK_AWAY: Final = 600.0  # seconds that a SuperLink that was there may take to come back
SLOWEST: Final = 15.0  # seconds between two questions to the SuperLink, at most
QUIET: Final = {  # nothing calls home, nothing is installed
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def flower_environment(folder: Path) -> dict[str, str]:
    """For Flower's commands, which call each other by name."""
    path = os.pathsep.join([program_folder(), os.environ.get("PATH", "")])
    return {**os.environ, **QUIET, "PATH": path, "FLWR_HOME": str(folder.resolve() / "flower")}


def lock_submission(folder: Path) -> AbstractContextManager[None]:
    """Hold a server's folder as the one command that submits its app, until the end.

    Raises `UserError` where another one does.
    """
    return locked_folder(folder, "use another folder", SUBMIT_LOCK)


def run_federation(folder: Path, reporter: Reporter, attempts: int) -> None:
    """Run the federation of a server's folder, as the one command that does.

    Raises `UserError` as `submit_federation` does, and where there is another command.
    """
    server_port(folder)  # of a folder that is none of ours, nothing is written into
    with lock_submission(folder):
        submit_federation(folder, reporter, attempts)


def submit_federation(
    folder: Path,
    reporter: Reporter,
    attempts: int = 5,
    pause: float = 2.0,
    options: Sequence[str] = (),
) -> None:
    """Run the federation of a server's folder; returns when it is finished. The caller holds
    `lock_submission`.

    options: further words for `flwr run`. Raises `UserError` where one is running there already,
    where it failed, where `attempts` ServerApps died, or the SuperLink did and stayed away.
    """
    with only_one(folder):  # a ServerApp that an earlier command submitted may be at work
        pass
    for attempt in range(1, attempts + 1):
        began = time.time()
        again = attempt > 1  # the SuperLink was there, and may be coming back
        number = retry_for(lambda: start_run(folder, *options), LINK_AWAY if again else 0.0, pause)
        reporter.say(f"submitted as Flower's run {number} (attempt {attempt} of {attempts})")
        state = wait_for_end(folder, number, began, pause)
        status = read_status(folder)
        if status.get("began", 0) >= began:
            if status["state"] == "finished":
                return
            if status["state"] == "failed":
                raise UserError(f"the run failed: {status['error']}: mend that, and run it again")
        reporter.say(f"the ServerApp ended ({state}) without a word; its log: flwr log {number}")
    raise UserError(f"{attempts} ServerApps died: see {folder / 'logs'}, and run it again")


T = TypeVar("T")


def retry_for(action: Callable[[], T], seconds: float, pause: float) -> T:
    """What `action` returns, tried again for so long after a `UserError`, which it then raises.

    pause: seconds before the second try; they grow to `SLOWEST`.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return action()
        except UserError:
            if time.monotonic() > end:
                raise
            time.sleep(pause)
            pause = min(2 * pause, SLOWEST)


def wait_for_end(folder: Path, number: int, since: float, pause: float) -> str:
    """Wait for the end of Flower's run; returns how it ended.

    The ServerApp's own status file is read every `pause` seconds. Flower's list takes a process
    and a second of a core, so it is asked for once the file says that the run ended, and now and
    then for a ServerApp that died. since: when the run was submitted, in seconds since 1970.
    """
    wait, asked = pause, time.monotonic()
    while True:
        time.sleep(pause)
        status = read_status(folder)
        ended = status.get("began", 0) >= since and status["state"] != "running"
        if not ended and time.monotonic() - asked < wait:
            continue
        state = retry_for(lambda: flower_state(folder, number), LINK_AWAY, pause)
        if state is not None:
            return state
        wait, asked = min(2 * wait, SLOWEST), time.monotonic()


def start_run(folder: Path, *options: str) -> int:
    """Submit the app; returns Flower's number of the run."""
    write_flower_config(folder)
    where = f"folder={json.dumps(str(folder.resolve()))}"
    reply = _flwr(folder, "run", "app", LINK, "--format", "json", "--run-config", where, *options)
    return int(reply["run-id"])


def register_nodes(folder: Path) -> list[str]:
    """Tell the SuperLink, which must be up, whose nodes may connect; returns the new ones.

    Raises `UserError` where it will not.
    """
    write_flower_config(folder)
    new = []
    for key in sorted((folder / NODES).glob("*.pub")):
        try:
            _flwr(folder, "supernode", "register", str(key.resolve()), LINK, "--format", "json")
            new.append(key.stem)
        except UserError as error:
            if "already" not in str(error):
                raise
    return new


def write_flower_config(folder: Path) -> None:
    """Flower's own configuration, whose paths are of this machine."""
    certificate = folder.resolve() / "certificates" / "ca.crt"
    values = {
        "port": server_port(folder),
        "certificate": json.dumps(str(certificate)) if certificate.exists() else "",
    }
    files.write_text(folder / "flower" / "config.toml", fill_template("flower.toml", values))


def flower_state(folder: Path, number: int) -> str | None:
    """How Flower's run ended; None while it goes on."""
    reply = _flwr(folder, "list", LINK, "--run-id", str(number), "--format", "json")
    status = str(reply["runs"][0]["status"])
    return status if status.startswith("finished") else None


def _flwr(folder: Path, *words: str) -> Any:
    done = subprocess.run(
        [str(Path(program_folder()) / "flwr"), *words],
        cwd=folder,
        env=flower_environment(folder),
        capture_output=True,
        text=True,
    )
    try:
        reply = json.loads(done.stdout)
    except ValueError:
        reply = {}
    if done.returncode or not reply.get("success", False):
        why = reply.get("error-message") or (done.stderr or done.stdout).strip()[-500:]
        raise UserError(f"flwr {words[0]} failed: {why}")
    return reply


def read_status(folder: Path) -> dict[str, Any]:
    path = folder / STATUS
    return dict(files.read_json(path)) if path.exists() else {}
