"""The run folder: what lies where in it, and who may write into it.

DIR/recipe.toml  environment.json  partition.json  notices.json  summary.json  report.html
DIR/metrics.jsonl  distillation.json  checkpoint.safetensors  personal.json  result.json
DIR/global/  clients/<id>/  tensorboard/<method>/
DIR/clients/<id>/private/   S, beside the global R or the client's own
DIR/clients/<id>/personal/  the client's own R, in methods that have one
DIR/benchmarks/   what `fedsdr eval` found (fedsdr.benchmarking)
DIR/baselines/<name>/   recipe.toml and the last two lines again, for each baseline
"""

import shutil
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from fedsdr import files
from fedsdr.errors import UserError
from fedsdr.methods import method, own_name
from fedsdr.recipe import differences, load_recipe, to_toml
from fedsdr.sections.recipe import Recipe

RECIPE_FILE = "recipe.toml"
ENVIRONMENT_FILE = "environment.json"
PARTITION_FILE = "partition.json"
DISTILLATION_FILE = "distillation.json"
PERSONAL_FILE = "personal.json"  # each client's own model, judged on its own data
NOISE_FILE = "noise.json"  # the secret seed of differential privacy, readable by its owner alone
RESULT_FILE = "result.json"  # a finished method's final metrics
SUMMARY_FILE = "summary.json"
NOTICES_FILE = "notices.json"  # what the run left out: fedsdr.notices
BENCHMARKS = "benchmarks"
REPORT_FILE = "report.html"  # the last thing that a run writes
MIB: Final = 2**20


def method_folders(recipe: Recipe, out: Path) -> list[tuple[str, Path, Recipe]]:
    """(name, folder, recipe) of the baselines and, last, the recipe's own method."""
    baselines = [(n, out / "baselines" / n, method(n, recipe)) for n in recipe.baselines]
    return [*baselines, (own_name(recipe), out, recipe)]


def check_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Raise unless `out` is new, or a run of the same recipe to resume; nothing is written over."""
    file = out / RECIPE_FILE
    try:
        begun, taken = file.exists(), out.exists() and not _is_unused(out)
    except OSError as error:
        raise UserError(f"cannot use {out}: {error}: give another --out") from error
    if resume and begun:
        changed = [
            key
            for key in differences(load_recipe(file), recipe)
            # Neither changes what is computed, and patience may have to grow.
            if not key.startswith(("tracking.", "deployment."))
        ]
        if changed:
            raise UserError(
                f"{out} holds a run of another recipe (they differ in {', '.join(changed)}): "
                "resume with the recipe it was started with, or give another --out"
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
    return out.is_dir() and all(path.match(f".{RECIPE_FILE}.*.tmp") for path in out.iterdir())


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
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{out} needs {needed / MIB:,.1f} MiB at least, and {free / MIB:,.1f} MiB are free "
            "there: make room, or give another --out"
        )


def claim_folder(out: Path, recipe: Recipe) -> None:
    """Make the folder, its recipe first: that is what --resume goes by; or tidy a resumed one."""
    try:
        files.remove_leftovers(out)
        if not (out / RECIPE_FILE).exists():
            files.write_text(out / RECIPE_FILE, to_toml(recipe))
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error}: give another --out") from error
