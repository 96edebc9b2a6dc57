"""Runs: a recipe with its baselines, the same over several seeds, and the demonstration."""

import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fedsdr.core import files
from fedsdr.core.environment import describe_environment
from fedsdr.core.errors import UserError
from fedsdr.core.layout import (
    ENVIRONMENT_FILE,
    LOCK_FILE,
    METRICS_FILE,
    NOTICES_FILE,
    PARTITION_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
)
from fedsdr.core.notices import announce_notices, as_rows
from fedsdr.core.progress import Reporter
from fedsdr.data.partition import data_fingerprint, describe_clients
from fedsdr.federation.workbench import Workbench, slow_ways
from fedsdr.model.identity import differing_parts
from fedsdr.recipe.load import load_recipe, recipe_differences
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.follow import Follower, tracked_method
from fedsdr.tracking.table import choose_backends
from fedsdr.workflows.method import run_method
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run_folder import (
    check_folder,
    check_room,
    claim_folder,
    claimed_folder,
    locked_folder,
    method_folders,
)
from fedsdr.workflows.summary import summarise_runs


def run_recipe(
    recipe: Recipe, out: Path, reporter: Reporter, resume: bool = False
) -> dict[str, Any]:
    """Run a recipe into a folder, or go on with what a killed run left there.

    Returns the summary. Raises `UserError` before any work, and before anything is written,
    where the recipe, its data or the folder are wrong.
    """
    if resume:
        check_folder(out, recipe, resume)
        say_kept(recipe, out, reporter)
        if (out / REPORT_FILE).exists():
            with locked_folder(out):  # which one that was killed at its very end has left
                return dict(files.read_json(out / SUMMARY_FILE))
    setting = prepare_run(recipe, reporter=reporter)
    check_folder(out, recipe, resume)
    check_room(out, setting.least_bytes())
    with claimed_folder(out, recipe, resume):
        began, begun = time.perf_counter(), (out / RECIPE_FILE).exists()
        notices = setting.notices
        announce_notices(notices, reporter)
        bench = setting.workbench(reporter)
        claim_folder(out, recipe)
        files.write_json(out / NOTICES_FILE, as_rows(notices))
        reporter.say("model: " + ", ".join(f"{k} {v}" for k, v in bench.description.items()))
        for words in slow_ways(bench.base.model):
            reporter.say(words)
        record_start(out, bench, recipe.seed, reporter)
        backends = choose_backends(recipe.tracking.backends)
        for name, folder, each in method_folders(recipe, out):
            follower = Follower(
                backends, tracked_method(each, out.name, name, out, folder), reporter
            )
            run_method(bench, each, folder, name, reporter, follower)
        return summarise_runs([recipe.seed], [out], out, time.perf_counter() - began, begun)


def say_kept(recipe: Recipe, out: Path, reporter: Reporter) -> None:
    """Name the methods whose rounds are done and that were judged otherwise than is asked now."""
    kept: dict[str, list[str]] = {}
    for name, folder, each in method_folders(recipe, out):
        rows = files.read_json_lines(folder / METRICS_FILE)
        if rows and rows[-1]["round"] == each.federation.rounds:
            changed = recipe_differences(load_recipe(folder / RECIPE_FILE), each)
            for key in changed:
                if key.startswith("evaluate."):
                    kept.setdefault(key, []).append(name)
    for key, names in kept.items():
        reporter.say(
            f"{out}: {', '.join(names)} had done all rounds before {key} was changed: evaluations "
            "along them stay as they are (fedsdr eval adds benchmarks)"
        )


def compare_seeds(
    recipe: Recipe, seeds: Sequence[int], out: Path, reporter: Reporter, resume: bool = False
) -> dict[str, Any]:
    """Run a recipe and its baselines for several seeds, each into `out/seed-N`; summarise."""
    recipes = [recipe.model_copy(update={"seed": seed}) for seed in seeds]
    needed = sum(prepare_run(each, reporter=reporter).least_bytes() for each in recipes)
    check_folder(out, recipe, resume)
    check_room(out, needed)
    with claimed_folder(out, recipe, resume):
        return _compare(recipe, recipes, out, reporter, resume)


def _compare(
    recipe: Recipe, recipes: Sequence[Recipe], out: Path, reporter: Reporter, resume: bool
) -> dict[str, Any]:
    began = time.perf_counter()
    seeds = [each.seed for each in recipes]
    begun = (out / RECIPE_FILE).exists()
    claim_folder(out, recipe)
    folders = [out / f"seed-{seed}" for seed in seeds]
    for each, folder in zip(recipes, folders, strict=True):
        reporter.say(f"seed {each.seed}")
        run_recipe(each, folder, reporter, resume)
    return summarise_runs(seeds, folders, out, time.perf_counter() - began, begun)


def run_demo(out: Path, seeds: Sequence[int], reporter: Reporter) -> dict[str, Any]:
    """The embedded demonstration; a finished one in `out` is replaced, another one resumed.

    Raises `UserError` where `out` holds anything else.
    """
    with resources.as_file(resources.files("fedsdr.lab") / "demo.toml") as path:
        recipe = load_recipe(path)
    recipes = [recipe.model_copy(update={"seed": seed}) for seed in seeds]
    with claimed_folder(out, recipe, resume=True):
        if (out / SUMMARY_FILE).exists():
            for path in [*out.iterdir()]:
                if path.name not in (RECIPE_FILE, LOCK_FILE):  # by which it stays ours
                    files.remove_path(path)
        return _compare(recipe, recipes, out, reporter, resume=True)


def record_start(out: Path, bench: Workbench, seed: int, reporter: Reporter) -> None:
    """Note what the run runs on and who holds what; a resumed run must find the same model, data
    and benchmarks."""
    asked = {} if bench.benchmarks is None else dict(bench.benchmarks.identities())
    now = {
        "identity": dict(bench.identity),
        "data": data_fingerprint(bench.clients),
        "benchmarks": asked,
    }
    file = out / ENVIRONMENT_FILE
    if not file.exists():
        files.write_json(out / PARTITION_FILE, describe_clients(bench.clients))
        model = {"model": dict(bench.description)}
        files.write_json(file, describe_environment(seed) | model | now)
        return
    before = files.read_json(file)
    remedy = "resume with the files it was started with, or give another --out"
    if before["data"] != now["data"]:
        raise UserError(f"the data have changed since {out} was begun: {remedy}")
    noted = before.get("benchmarks", {})
    known = {task: it for task, it in noted.items() if task in asked}
    if tasks := differing_parts(known, asked):
        raise UserError(f"benchmark {tasks[0]!r} has changed since {out} was begun: {remedy}")
    if "identity" not in before:  # begun by an earlier version
        reporter.say(f"{out} does not say what base model it was begun with: it is taken for this")
        before |= {"identity": now["identity"]}
        files.write_json(file, before)
    elif parts := differing_parts(before["identity"], bench.identity):
        raise UserError(
            f"the base model has changed since {out} was begun, in its {', '.join(parts)}: {remedy}"
        )
    if asked.keys() - noted.keys():
        files.write_json(file, before | {"benchmarks": noted | asked})
