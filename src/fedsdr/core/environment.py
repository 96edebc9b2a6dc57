"""The environment of a run: enough to repeat it, nothing that identifies a machine or a person."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fedsdr import __version__

LIBRARIES = ("torch", "transformers", "peft", "safetensors", "datasets", "numpy")


def describe_environment(seed: int) -> dict[str, Any]:
    """Versions, git commit, seed, threads; all JSON."""
    return {
        "fedsdr": __version__,
        "git": git_commit(),
        "seed": seed,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_commit(apart: str | None = None) -> str | None:
    """The commit of the checkout that this package lies in, "+" appended if it was changed.

    apart: a folder of the checkout whose changes do not count.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    counted = [":(top)"] if apart is None else [":(top)", f":(top,exclude){apart}"]
    try:
        changed = git("status", "--porcelain", "--", *counted)
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
