"""Who may write into a run folder: what is in it, its lock, and room for what a run will write."""

import fcntl
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from fedsdr.core import files
from fedsdr.core.errors import REMEDIES, UserError, WriteError
from fedsdr.core.layout import (
    BASELINES_FOLDER,
    CLIENTS_FOLDER,
    GLOBAL_ADAPTER,
    JUDGE_FILE,
    LOCK_FILE,
    RECIPE_FILE,
)
from fedsdr.recipe.load import load_recipe, recipe_differences, to_toml
from fedsdr.recipe.sections.recipe import Recipe

SEED_FOLDER: Final = re.compile(r"seed-\d+")  # of a comparison
RUN_SUFFIXES: Final = (".toml", ".json", ".jsonl", ".html", ".safetensors")  # of a run's own files

# What may differ at a resume: no adapter depends on it, and every score is of the same questions.
# So an evaluation for which there is no memory can be left out, and patience can grow. In the lab
# claims are read off curves, whose points would lie further apart in one method than in another.
EVERY: Final = "evaluate.every"
CHANGEABLE = (
    "tracking.", "deployment.", "evaluate.every", "evaluate.personal", "evaluate.benchmarks",
    "evaluate.benchmark_every",
)  # fmt: skip


@contextmanager
def locked_folder(
    folder: Path, instead: str = "give another --out", lock: str = LOCK_FILE
) -> Iterator[None]:
    """Hold a folder, made where it is missing, against every other process until the end.

    instead: what else the user may do. lock: the lock's file in the folder. Raises `UserError`
    where another process holds it, or nothing can be written into it. A lock ends with its process,
    however that dies. A folder in which nothing came to be is removed again.
    """
    file, made = folder / lock, []
    try:
        made = files.make_folder(folder)
        descriptor = _lock(file, instead)
    except (OSError, WriteError) as error:
        _unmake(made)
        problem = error.problem if isinstance(error, WriteError) else error
        if problem.errno in REMEDIES:
            raise WriteError(folder, problem) from error
        raise UserError(f"cannot write into {folder}: {problem}: {instead}") from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)
        _unmake(made)


def _lock(file: Path, instead: str) -> int:
    """The open file, locked, with the name of this process in it."""
    while True:
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            if _take(file, descriptor):
                return descriptor
        except BlockingIOError as error:
            holder = os.read(descriptor, 999).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UserError(
                f"{file.parent} is in use by {holder}: wait until it ends, or {instead}"
            ) from error
        except OSError:  # a file system without locks, or without room
            file.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(file: Path, descriptor: int) -> bool:
    """Lock the open file. False: whoever held it has removed it since it was opened, and so it
    keeps no process out."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not (file.exists() and os.path.samestat(file.stat(), os.fstat(descriptor))):
        return False
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return True


def _unmake(made: list[Path]) -> None:
    with suppress(OSError):  # what is in use stays
        for folder in reversed(made):
            folder.rmdir()


@contextmanager
def claimed_folder(out: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Hold `out` for a run of this recipe; raises `UserError` where that may not be there."""
    check_folder(out, recipe, resume)  # before anything is made
    with locked_folder(out):
        check_folder(out, recipe, resume)  # another may have ended just before
        yield


def check_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Raise unless `out` is new, or a run of the same recipe to resume; nothing is written over."""
    file = out / RECIPE_FILE
    try:
        begun, taken = file.exists(), out.exists() and not _is_unused(out)
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file and no folder: give another --out")
    except OSError as error:
        raise UserError(f"cannot use {out}: {error}: give another --out") from error
    if resume and begun:
        held = load_recipe(file)
        changed = [
            key
            for key in recipe_differences(held, recipe)
            if not key.startswith(CHANGEABLE) or (key == EVERY and recipe.world)
        ]
        if changed:
            named = f', with method = "{held.method}" in it' if "method" in changed else ""
            raise UserError(
                f"{out} holds a run of another recipe (they differ in {', '.join(changed)}): "
                f"resume with the recipe it was started with{named}, or give another --out"
            )
        return
    if taken:
        raise UserError(
            f"{out} is not empty and nothing is written over: "
            + ("go on with it by --resume, or " if begun else "")
            + "give another --out"
        )


def _is_unused(out: Path) -> bool:
    """An empty folder, or one whose recipe a killed run was about to write."""
    return out.is_dir() and all(
        path.name == LOCK_FILE or path.match(f".{RECIPE_FILE}.*.tmp") for path in out.iterdir()
    )


def check_writable(folder: Path) -> None:
    """Raise unless a file can be made in `folder`, or where the folder is to be made.

    For what writes only after long work; nothing is left behind.
    """
    place = folder
    try:
        while not place.exists():
            place = place.parent
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error}: give another --out") from error


def check_room(out: Path, needed: int) -> None:
    """Raise where there is no room in `out` for so many bytes; a run that goes on has written a
    part of its own already."""
    if (out / RECIPE_FILE).exists():
        return
    files.check_space(out, needed, "give another --out")


def claim_folder(out: Path, recipe: Recipe) -> None:
    """Make the folder, its recipe first: that is what --resume goes by; or tidy a resumed one."""
    files.make_folder(out)
    files.recover_folder(out, lambda path: _is_of_runs(path.relative_to(out).parts))
    files.write_text(out / RECIPE_FILE, to_toml(recipe))


def _is_of_runs(place: Sequence[str]) -> bool:
    """Whether a path of a run folder, in parts, is written by runs, and not by what works on a run:
    evaluations, judges, exports."""
    first, *rest = place
    if first in (CLIENTS_FOLDER, GLOBAL_ADAPTER):
        return True
    if first == BASELINES_FOLDER:
        return len(rest) < 2 or _is_of_runs(rest[1:])
    if SEED_FOLDER.fullmatch(first):
        return not rest or _is_of_runs(rest)
    return not rest and Path(first).suffix in RUN_SUFFIXES and first != JUDGE_FILE
