"""Commands that run recipes, and write their reports.

Imports of heavy libraries are inside the commands: `--help` must not wait for them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsdr.cli.session import (
    RESUME,
    DryRun,
    Flops,
    Out,
    OutOrNone,
    RecipePath,
    Resume,
    RunFolder,
    Sets,
    command_session,
    parse_seeds,
)
from fedsdr.core.layout import REPORT_FILE

if TYPE_CHECKING:
    from fedsdr.recipe.sections.recipe import Recipe


def demo_command(
    out: Out = Path("runs/demo"),
    seeds: Annotated[str, typer.Option(help="Comma-separated, e.g. 0,1,2")] = "0,1,2",
) -> None:
    """Run the whole method on the embedded lab in a few minutes and write a report.

    An interrupted demo goes on where it stopped; a finished one is run anew.
    """
    from fedsdr.workflows import run as runs

    with command_session("go on with the same command") as reporter:
        summary = runs.run_demo(out, parse_seeds(seeds), reporter)
    print_outcome(out, summary)


def run_command(
    recipe: RecipePath,
    out: OutOrNone = None,
    resume: Resume = False,
    set_: Sets = None,
    dry_run: DryRun = False,
    flops: Flops = None,
) -> None:
    """Run a recipe and its baselines into a folder, with a report."""
    from fedsdr.recipe import load as recipes
    from fedsdr.workflows import run as runs

    folder = required_folder(out, dry_run, flops)
    with command_session(RESUME) as reporter:
        loaded = recipes.load_recipe(recipe, set_ or [])
        if dry_run:
            return print_dry_run(loaded, out, [loaded.seed], flops, resume)
        summary = runs.run_recipe(loaded, folder, reporter, resume)
    return print_outcome(folder, summary)


def compare_command(
    recipe: RecipePath,
    out: OutOrNone = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated, e.g. 0,1,2")] = "0,1,2",
    resume: Resume = False,
    set_: Sets = None,
    dry_run: DryRun = False,
    flops: Flops = None,
) -> None:
    """Run a recipe and its baselines for several seeds; report means with 95 % intervals."""
    from fedsdr.recipe import load as recipes
    from fedsdr.workflows import run as runs

    folder = required_folder(out, dry_run, flops)
    with command_session(RESUME) as reporter:
        loaded = recipes.load_recipe(recipe, set_ or [])
        if dry_run:
            return print_dry_run(loaded, out, parse_seeds(seeds), flops, resume)
        summary = runs.compare_seeds(loaded, parse_seeds(seeds), folder, reporter, resume)
    return print_outcome(folder, summary)


def print_dry_run(
    recipe: "Recipe", out: Path | None, seeds: Sequence[int], flops: float | None, resume: bool
) -> None:
    from fedsdr.cli.plan import dry_run

    dry_run(recipe, out, seeds, flops, resume)


def required_folder(out: Path | None, dry_run: bool, flops: float | None) -> Path:
    """The run folder, which only a dry run can do without; it alone has a use for `flops`."""
    if flops is not None and not dry_run:
        raise typer.BadParameter("'--flops' is for an estimate: add --dry-run, or remove it.")
    if out is None and not dry_run:
        raise typer.BadParameter("Missing option '--out' (only --dry-run needs none).")
    return out or Path()


def report_command(folder: RunFolder) -> None:
    """Write a run's report.html anew."""
    from fedsdr.report.html import write_report

    with command_session():
        typer.echo(write_report(folder))


def print_outcome(out: Path, summary: dict[str, object]) -> None:
    from fedsdr.report.terminal import print_summary

    print_summary(summary)
    typer.echo(f"\nreport: {out / REPORT_FILE}")
