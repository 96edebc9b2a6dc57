"""Submitting a federation's app to its SuperLink, and seeing it to its end.

A ServerApp that dies is not started again by Flower. Our checkpoint lets a new one go on where it
stopped, so it is submitted again until the run is finished, or has failed for a reason that it
tells.
"""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fedsdr import files
from fedsdr.deploy.init import NODES, programs, render
from fedsdr.deploy.site import STATUS, server_port
from fedsdr.errors import UserError
from fedsdr.progress import Reporter

LINK: Final = "federation"  # the SuperLink's name in flower/config.toml
QUIET: Final = {  # nothing calls home, nothing is installed
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def environment(folder: Path) -> dict[str, str]:
    """For Flower's commands, which call each other by name."""
    path = os.pathsep.join([programs(), os.environ.get("PATH", "")])
    return {**os.environ, **QUIET, "PATH": path, "FLWR_HOME": str(folder.resolve() / "flower")}


def submit(
    folder: Path,
    reporter: Reporter,
    attempts: int = 5,
    pause: float = 2.0,
    options: Sequence[str] = (),
) -> None:
    """Run the federation of a server's folder; returns when it is finished.

    options: further words for `flwr run`. Raises `UserError` where it failed, or where `attempts`
    ServerApps died.
    """
    for attempt in range(1, attempts + 1):
        began = time.time()
        number = start(folder, *options)
        reporter.say(f"submitted as Flower's run {number} (attempt {attempt} of {attempts})")
        while (state := flower_state(folder, number)) is None:
            time.sleep(pause)
        told = read_status(folder)
        if told.get("began", 0) >= began:
            if told["state"] == "finished":
                return
            if told["state"] == "failed":
                raise UserError(f"the run failed: {told['error']}: mend that, and run it again")
        reporter.say(f"the ServerApp ended ({state}) without a word; its log: flwr log {number}")
    raise UserError(f"{attempts} ServerApps died: see {folder / 'logs'}, and run it again")


def start(folder: Path, *options: str) -> int:
    """Submit the app; returns Flower's number of the run."""
    configure(folder)
    where = f"folder={json.dumps(str(folder.resolve()))}"
    told = _flwr(folder, "run", "app", LINK, "--format", "json", "--run-config", where, *options)
    return int(told["run-id"])


def register(folder: Path) -> list[str]:
    """Tell the SuperLink, which must be up, whose nodes may connect; returns the new ones.

    Raises `UserError` where it will not.
    """
    configure(folder)
    new = []
    for key in sorted((folder / NODES).glob("*.pub")):
        try:
            _flwr(folder, "supernode", "register", str(key.resolve()), LINK, "--format", "json")
            new.append(key.stem)
        except UserError as error:
            if "already" not in str(error):
                raise
    return new


def configure(folder: Path) -> None:
    """Flower's own configuration, whose paths are of this machine."""
    certificate = folder.resolve() / "certificates" / "ca.crt"
    values = {
        "port": server_port(folder),
        "certificate": json.dumps(str(certificate)) if certificate.exists() else "",
    }
    files.write_text(folder / "flower" / "config.toml", render("flower.toml", values))


def flower_state(folder: Path, number: int) -> str | None:
    """How Flower's run ended; None while it goes on, or while the SuperLink cannot be asked."""
    try:
        told = _flwr(folder, "list", LINK, "--run-id", str(number), "--format", "json")
    except UserError:  # restarting, say
        return None
    status = str(told["runs"][0]["status"])
    return status if status.startswith("finished") else None


def _flwr(folder: Path, *words: str) -> Any:
    done = subprocess.run(
        [str(Path(programs()) / "flwr"), *words],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
    )
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = {}
    if done.returncode or not told.get("success", False):
        why = told.get("error-message") or (done.stderr or done.stdout).strip()[-500:]
        raise UserError(f"flwr {words[0]} failed: {why}")
    return told


def read_status(folder: Path) -> dict[str, Any]:
    path = folder / STATUS
    return dict(files.read_json(path)) if path.exists() else {}
