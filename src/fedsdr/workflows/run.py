"""Runs: a recipe with its baselines, the same over several seeds, and the demonstration."""

import time
import tomllib
from collections.abc import Callable, Sequence
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
    SKIPPED_FILE,
    SUMMARY_FILE,
)
from fedsdr.core.notices import announce_notices, as_rows
from fedsdr.core.progress import Reporter
from fedsdr.data.partition import data_fingerprint, describe_clients
from fedsdr.federation.loaded import LoadedRun, slow_ways
from fedsdr.model.identity import differing_parts
from fedsdr.recipe.load import load_recipe, recipe_differences
from fedsdr.recipe.methods import Method, resolve_methods
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.follow import Follower, tracked_method
from fedsdr.tracking.table import choose_backends
from fedsdr.workflows.live_report import LiveReport
from fedsdr.workflows.method import OpenEngine, engine_in_process, train_method
from fedsdr.workflows.prepare import PreparedRun, prepare_methods, prepare_run
from fedsdr.workflows.run_folder import (
    check_folder,
    check_room,
    claim_folder,
    claimed_folder,
    locked_folder,
)
from fedsdr.workflows.summary import RunTime, is_summarised, summarise_runs

Methods = Sequence[Method]  # of a run: the baselines, and last its own


def run_recipe(
    recipe: Recipe, out: Path, reporter: Reporter, resume: bool = False
) -> dict[str, Any]:
    """Run a recipe into a folder, or go on with what a killed run left there.

    Returns the summary. Raises `UserError` before any work, and before anything is written,
    where the recipe, its data or the folder are wrong.
    """
    return run_in_process(resolve_methods(recipe), out, reporter, resume)


def run_in_process(
    methods: Methods,
    out: Path,
    reporter: Reporter,
    resume: bool = False,
    loaded: LoadedRun | None = None,
    prepared: PreparedRun | None = None,
    comparison: Path | None = None,
) -> dict[str, Any]:
    """`run_recipe`, of methods that are resolved already.

    loaded: the same model and data, where they are in memory. prepared: the same methods with
    their records, where these have been read. comparison: the folder of the comparison that the run
    is a part of, whose report shows it, too, as it goes on.
    """
    recipe = methods[-1].recipe
    if resume:
        check_folder(out, recipe, resume)
        say_kept(methods, out, reporter)
        if is_summarised(out):
            with locked_folder(out):  # removes the lock of a run that was killed at its very end
                return dict(files.read_json(out / SUMMARY_FILE))
    ready = prepared or prepare_methods(methods, reporter=reporter)
    check_folder(out, recipe, resume)
    check_room(out, ready.least_bytes())

    def start() -> OpenEngine:
        notices = ready.notices
        announce_notices(notices, reporter)
        run = loaded or ready.load(reporter)
        claim_folder(out, recipe)
        files.write_json(out / NOTICES_FILE, as_rows(notices))
        if skipped := [row._asdict() for row in ready.skipped]:
            files.write_json_lines(out / SKIPPED_FILE, skipped, private=True)
        reporter.say("model: " + ", ".join(f"{k} {v}" for k, v in run.description.items()))
        for words in slow_ways(run.base.model):
            reporter.say(words)
        record_start(out, run, recipe.seed, reporter)
        return engine_in_process(run, reporter)

    return run_methods(methods, out, start, reporter, resume, comparison)


def run_methods(
    methods: Methods,
    out: Path,
    start: Callable[[], OpenEngine],
    reporter: Reporter,
    resume: bool,
    comparison: Path | None = None,
) -> dict[str, Any]:
    """The frame of every run, wherever its clients are: each method from start to result, then the
    report. Returns the summary.

    start: loads what the run needs, and only then begins to write into `out`. comparison: as of
    `run_in_process`.
    """
    recipe = methods[-1].recipe
    with claimed_folder(out, recipe, resume):
        began, begun = time.perf_counter(), (out / RECIPE_FILE).exists()
        open_engine = start()
        backends = choose_backends(recipe.tracking.backends)
        live = LiveReport([out, *([comparison] if comparison else [])], reporter)
        for method in (each.within(out) for each in methods):
            follower = Follower(backends, tracked_method(method, out), reporter)
            train_method(method, open_engine, reporter, follower, live.observe)
        seconds = time.perf_counter() - began
        return summarise_runs(methods, [recipe.seed], [out], out, RunTime(seconds, begun))


def say_kept(methods: Methods, out: Path, reporter: Reporter) -> None:
    """Name the methods whose rounds are done and that were judged otherwise than is asked now."""
    kept: dict[str, list[str]] = {}
    for method in (each.within(out) for each in methods):
        rows = files.read_json_lines(method.folder / METRICS_FILE)
        if rows and rows[-1]["round"] == method.recipe.federation.rounds:
            changed = recipe_differences(load_recipe(method.folder / RECIPE_FILE), method.recipe)
            for key in changed:
                if key.startswith("evaluate."):
                    kept.setdefault(key, []).append(method.name)
    for key, names in kept.items():
        reporter.say(
            f"{out}: {', '.join(names)} had done all rounds before {key} was changed: evaluations "
            "along them stay as they are (fedsdr eval adds benchmarks)"
        )


def compare_seeds(
    recipe: Recipe, seeds: Sequence[int], out: Path, reporter: Reporter, resume: bool = False
) -> dict[str, Any]:
    """Run a recipe and its baselines for several seeds, each into `out/seed-N`; summarise.

    Every seed is checked before the first is run, and its records are read once: those of all
    seeds are in memory together.
    """
    runs = prepare_seeds(recipe, seeds, reporter)
    check_folder(out, recipe, resume)
    check_room(out, sum(each.least_bytes() for each in runs))
    with claimed_folder(out, recipe, resume):
        return _compare(recipe, runs, out, reporter, resume)


def prepare_seeds(recipe: Recipe, seeds: Sequence[int], reporter: Reporter) -> list[PreparedRun]:
    """The run of each seed."""
    return [
        prepare_run(recipe.model_copy(update={"seed": seed}), reporter=reporter) for seed in seeds
    ]


def _compare(
    recipe: Recipe, runs: Sequence[PreparedRun], out: Path, reporter: Reporter, resume: bool
) -> dict[str, Any]:
    """runs: one for each seed."""
    began = time.perf_counter()
    seeds = [each.recipe.seed for each in runs]
    begun = (out / RECIPE_FILE).exists()
    claim_folder(out, recipe)
    folders = [out / f"seed-{seed}" for seed in seeds]
    for folder in folders:  # those to come, too: the live report names them
        files.make_folder(folder)
    for run, folder in zip(runs, folders, strict=True):
        reporter.say(f"seed {run.recipe.seed}")
        run_in_process(run.methods, folder, reporter, resume, prepared=run, comparison=out)
    seconds = time.perf_counter() - began
    return summarise_runs(runs[0].methods, seeds, folders, out, RunTime(seconds, begun))


def demo_recipe(model: str | None = None) -> Recipe:
    """The demonstration's recipe: of the embedded lab, or of the English lab on a given model.

    model: as `model.path` of a recipe, where a folder or file that is there needs no mark. Raises
    `UserError` where it is not found.
    """
    name = "demo.toml" if model is None else "english/demo.toml"
    tables = tomllib.loads((resources.files("fedsdr.lab") / name).read_text("utf-8"))
    if model is not None:
        tables["model"]["path"] = Path(model) if Path(model).exists() else model
    return load_recipe(tables)


def run_demo(
    out: Path, seeds: Sequence[int], reporter: Reporter, model: str | None = None
) -> dict[str, Any]:
    """The demonstration; a finished one in `out` is replaced, another one resumed.

    model: of `demo_recipe`. Raises `UserError` where `out` holds anything else.
    """
    recipe = demo_recipe(model)
    with claimed_folder(out, recipe, resume=True):
        if (out / SUMMARY_FILE).exists():
            for path in [*out.iterdir()]:
                if path.name not in (RECIPE_FILE, LOCK_FILE):  # by which it stays ours
                    files.remove_path(path)
        return _compare(recipe, prepare_seeds(recipe, seeds, reporter), out, reporter, resume=True)


def record_start(out: Path, loaded: LoadedRun, seed: int, reporter: Reporter) -> None:
    """Note what the run runs on and who holds what; a resumed run must find the same model, data
    and benchmarks."""
    asked = {} if loaded.benchmarks is None else dict(loaded.benchmarks.identities())
    now = {
        "identity": dict(loaded.identity),
        "data": data_fingerprint(loaded.clients),
        "benchmarks": asked,
    }
    file = out / ENVIRONMENT_FILE
    if not file.exists():
        files.write_json(out / PARTITION_FILE, describe_clients(loaded.clients))
        model = {"model": dict(loaded.description)}
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
    elif parts := differing_parts(before["identity"], loaded.identity):
        raise UserError(
            f"the base model has changed since {out} was begun, in its {', '.join(parts)}: {remedy}"
        )
    if asked.keys() - noted.keys():
        files.write_json(file, before | {"benchmarks": noted | asked})
