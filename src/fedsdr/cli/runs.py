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
    parse_seeds,
    session,
)

if TYPE_CHECKING:
    from fedsdr.sections.recipe import Recipe


def demo(
    out: Out = Path("runs/demo"),
    seeds: Annotated[str, typer.Option(help="Comma-separated, e.g. 0,1,2")] = "0,1,2",
) -> None:
    """Run the whole method on the embedded lab in a few minutes and write a report.

    An interrupted demo goes on where it stopped; a finished one is run anew.
    """
    from fedsdr import run as runs

    with session("go on with the same command") as reporter:
        summary = runs.demo(out, parse_seeds(seeds), reporter)
    finish(out, summary)


def run(
    recipe: RecipePath,
    out: OutOrNone = None,
    resume: Resume = False,
    set_: Sets = None,
    dry_run: DryRun = False,
    flops: Flops = None,
) -> None:
    """Run a recipe and its baselines into a folder, with a report."""
    from fedsdr import recipe as recipes
    from fedsdr import run as runs

    folder = needed(out, dry_run, flops)
    with session(RESUME) as reporter:
        loaded = recipes.load_recipe(recipe, set_ or [])
        if dry_run:
            return plan(loaded, out, [loaded.seed], flops, resume)
        summary = runs.run(loaded, folder, reporter, resume)
    return finish(folder, summary)


def compare(
    recipe: RecipePath,
    out: OutOrNone = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated, e.g. 0,1,2")] = "0,1,2",
    resume: Resume = False,
    set_: Sets = None,
    dry_run: DryRun = False,
    flops: Flops = None,
) -> None:
    """Run a recipe and its baselines for several seeds; report means with 95 % intervals."""
    from fedsdr import recipe as recipes
    from fedsdr import run as runs

    folder = needed(out, dry_run, flops)
    with session(RESUME) as reporter:
        loaded = recipes.load_recipe(recipe, set_ or [])
        if dry_run:
            return plan(loaded, out, parse_seeds(seeds), flops, resume)
        summary = runs.compare(loaded, parse_seeds(seeds), folder, reporter, resume)
    return finish(folder, summary)


def plan(
    recipe: "Recipe", out: Path | None, seeds: Sequence[int], flops: float | None, resume: bool
) -> None:
    from fedsdr.cli.plan import dry_run

    dry_run(recipe, out, seeds, flops, resume)


def needed(out: Path | None, dry_run: bool, flops: float | None) -> Path:
    """The run folder, which only a dry run can do without; it alone has a use for `flops`."""
    if flops is not None and not dry_run:
        raise typer.BadParameter("'--flops' is for an estimate: add --dry-run, or remove it.")
    if out is None and not dry_run:
        raise typer.BadParameter("Missing option '--out' (only --dry-run needs none).")
    return out or Path()


def reproduce(
    out: Out = Path("runs/evidence"),
    seeds: Annotated[str, typer.Option(help="Comma-separated, e.g. 0,1,2,3,4")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look in ten minutes: fewer cells, two seeds.")
    ] = False,
    only: Annotated[str, typer.Option(help="Comma-separated experiments, instead of all.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 2,
    cells: Annotated[
        Path | None,
        typer.Option(help="Finished cells, evidence/cells.jsonl.xz of a document: not run again."),
    ] = None,
) -> None:
    """Test the paper's claims on the lab and write evidence.md with its figures.

    What is done already in --out is not done again. The full form takes hours. --quick runs
    FedAvg and FedYogi on raw data and on rewrites, local training on either, FedSDR and its
    literal form, verified FedSD, raw and rewritten data mixed, FedDPA and Ditto: no sweeps, and
    two seeds are too few for a verdict.
    """
    from fedsdr.evidence.document import choose_experiments
    from fedsdr.evidence.document import reproduce as run_all

    with session("go on with the same command") as reporter:
        chosen = parse_seeds(seeds or ("0,1" if quick else "0,1,2,3,4"))
        names = choose_experiments(only, quick)
        document = run_all(out, chosen, names, jobs, reporter, quick, cells)
    typer.echo(f"\nevidence: {document}")


def report(folder: RunFolder) -> None:
    """Write a run's report.html anew."""
    from fedsdr.report.html import write_report

    with session():
        typer.echo(write_report(folder))


def finish(out: Path, summary: dict[str, object]) -> None:
    from fedsdr.report.terminal import print_summary

    print_summary(summary)
    typer.echo(f"\nreport: {out / 'report.html'}")
