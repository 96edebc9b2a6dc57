"""Running cells: groups that share a world and a model, several at a time, each cell once.

A cell is a method's folder, `cells/KEY/seed-N`, written by `fedsdr.workflows.method`, with what
only evidence asks for in `evidence.json`. A finished cell is left alone; one that was killed goes
on.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import Final

from experiments.measure import EVIDENCE_FILE, measure_cell
from experiments.plan import Cell, portable_recipe
from experiments.pool import worker_pool
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.core.progress import Reporter, silent_reporter
from fedsdr.core.quiet import quiet_libraries
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.load import flatten_tables, load_recipe, recipe_differences
from fedsdr.recipe.methods import COMMON, Method
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.follow import Follower, tracked_method
from fedsdr.workflows.method import engine_in_process, train_method
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run import record_start

CELLS_FOLDER: Final = "cells"
Task = tuple[Path, Cell]
Group = tuple[int, Sequence[Cell]]  # a seed, and cells that share all but the method


def cell_folder(out: Path, cell: Cell, seed: int) -> Path:
    return out / CELLS_FOLDER / cell.key / f"seed-{seed}"


def run_cells(
    cells: Sequence[Cell], seeds: Sequence[int], out: Path, jobs: int, reporter: Reporter
) -> None:
    """Run what is not done yet; neighbours differ in their seed, so that no two processes begin
    with the base model of one world."""
    groups = [(seed, group) for group in groups_of(cells) for seed in seeds]
    run_groups(groups, out, jobs, reporter)


def run_groups(groups: Sequence[Group], out: Path, jobs: int, reporter: Reporter) -> None:
    """Run what is not done yet, group by group, `jobs` of them at a time; cells of a group that
    have not the same model, adapters and data apart."""
    groups = [(seed, part) for seed, group in groups for part in groups_of(group)]
    for cell in {cell.key: cell for _, group in groups for cell in group}.values():
        check_recipe(cell, sorted({seed for seed, _ in groups}), out)
    tasks_of = [
        (seed, [(cell_folder(out, cell, seed), cell) for cell in group]) for seed, group in groups
    ]
    folders = [folder for _, tasks in tasks_of for folder, _ in tasks]
    waiting = [(seed, todo) for seed, tasks in tasks_of if (todo := unfinished(tasks))]
    with reporter.bar("evidence: cells", len(folders)) as bar:
        bar.advance(shown := len(folders) - sum(len(tasks) for _, tasks in waiting))
        with worker_pool(jobs) as pool:
            futures = [pool.submit(run_group, seed, tasks) for seed, tasks in waiting]
            left: set[Future[None]] = set(futures)
            while left:
                done, left = wait(left, timeout=1.0, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                finished = sum((folder / EVIDENCE_FILE).exists() for folder in folders)
                bar.advance(finished - shown)
                shown = finished


def check_recipe(cell: Cell, seeds: Sequence[int], out: Path) -> None:
    """Raise `UserError` where a cell was run by another recipe than its name stands for now: a
    cell is named by what is no default, and defaults may change."""
    for seed in seeds:
        folder = cell_folder(out, cell, seed)
        if not (folder / EVIDENCE_FILE).exists():
            continue
        found, asked = load_recipe(folder / RECIPE_FILE), cell.recipe(seed)
        if changed := recipe_differences(*map(portable_recipe, (found, asked))):
            raise UserError(
                f"{folder} was run with another {', '.join(changed[:3])}: give another --out (or "
                "other --cells), so that its numbers do not stand for the present defaults"
            )
        return  # the other seeds were run by the same program


def unfinished(tasks: Iterable[Task]) -> list[Task]:
    return [(folder, cell) for folder, cell in tasks if not (folder / EVIDENCE_FILE).exists()]


def groups_of(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that share model, data and what is common to methods, in the order of the plan."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_common(cell.recipe(0)), []).append(cell)
    return [part for group in groups.values() for part in _pieces(group)]


def _pieces(group: Sequence[Cell], size: int = 8) -> list[list[Cell]]:
    """Long groups in pieces, so that all processes have work; a world costs little to load."""
    return [list(group[start : start + size]) for start in range(0, len(group), size)]


def _common(recipe: Recipe) -> str:
    leaves: Mapping[str, object] = flatten_tables(recipe.model_dump(mode="json"))
    return str({key: value for key, value in leaves.items() if key.startswith(COMMON)})


def run_group(seed: int, tasks: Sequence[Task]) -> None:
    """The cells of one world, one after another, in this process. Raises `ValueError` for cells
    that have not the same model, adapters and data."""
    if len({_common(cell.recipe(seed)) for _, cell in tasks}) > 1:
        raise ValueError(f"cells of several worlds in one group: {[cell.key for _, cell in tasks]}")
    quiet_libraries()
    first = tasks[0][1].recipe(seed)
    prepared = prepare_run(first)
    loaded = prepared.load(silent_reporter())
    open_engine = engine_in_process(loaded, silent_reporter())
    for folder, cell in tasks:
        began = time.perf_counter()
        files.make_folder(folder)
        files.recover_folder(folder)
        recipe = cell.recipe(seed)
        method = Method(cell.method, folder, recipe, build_algorithm(recipe))
        record_start(folder, loaded, seed, silent_reporter())
        untracked = Follower({}, tracked_method(method, folder), silent_reporter())
        train_method(method, open_engine, silent_reporter(), untracked)
        found = measure_cell(loaded, prepared, method)
        seconds = round(time.perf_counter() - began, 2)
        files.write_json(folder / EVIDENCE_FILE, {**found, "seconds": seconds})
