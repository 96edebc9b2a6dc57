"""The distributions that a release consists of: `make dist` writes build/dist.

They are built from a copy of the sources, so that nothing an earlier build has left gets in; the
wheel is built from the source distribution, and both must pass `twine check --strict`.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")


class DistributionError(Exception):
    """A distribution that cannot be built, or is not as it must be."""


class Distributions(NamedTuple):
    """Paths of the source distribution and of the wheel."""

    sdist: Path
    wheel: Path


def build_distributions(folder: Path) -> Distributions:
    """Build and check both into a new folder; `DistributionError` says what is wrong."""
    with tempfile.TemporaryDirectory(prefix="fedsdr-dist-") as name:
        copy = Path(name) / "fedsdr"
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / "src", copy / "src", ignore=ignored)
        for file in FILES:
            shutil.copy(ROOT / file, copy)
        _run("build", "--no-isolation", "--outdir", str(folder), str(copy))
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    _run("twine", "check", "--strict", str(sdist), str(wheel))
    _check_files(wheel)
    return Distributions(sdist, wheel)


def _check_files(wheel: Path) -> None:
    """The wheel has the package's files, every one, and the licence."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        raise DistributionError("the wheel has no licence file")
    held = {name for name in names if ".dist-info/" not in name}
    ours = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "fedsdr").rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    if held != ours:
        raise DistributionError(
            f"files of the package and of its wheel differ: {sorted(held ^ ours)}"
        )


def _run(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DistributionError(f"{' '.join(words)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    target = ROOT / "build" / "dist"
    shutil.rmtree(target, ignore_errors=True)
    for path in build_distributions(target):
        print(f"dist: {path.relative_to(ROOT)}")
