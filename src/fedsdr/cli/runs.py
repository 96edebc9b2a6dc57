"""Commands that run recipes, and write their reports.

Imports of heavy libraries are inside the commands: `--help` must not wait for them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

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

if TYPE_CHECKING:
    from fedsdr.api.runs import Comparison, Run
    from fedsdr.recipe.sections.recipe import Recipe


def demo_command(
    out: Out = Path("runs/demo"),
    model: Annotated[
        str | None, typer.Option(help="An instruction model: a folder, a GGUF file or a name.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Comma-separated; by default 0,1,2, with --model 0.")
    ] = None,
) -> None:
    """Run the whole method on the embedded lab in a few minutes and write a report.

    With --model it is run on that model: five invented organisations teach it facts that are known
    exactly, and the report is written again as results come in. An interrupted demo continues where
    it stopped; a finished one is run again.
    """
    from fedsdr.api.runs import demo

    with command_session("go on with the same command") as reporter:
        chosen = None if seeds is None else parse_seeds(seeds)
        found = demo(out, model=model, seeds=chosen, progress=reporter)
    print_outcome(found)


def run_command(
    recipe: RecipePath,
    out: OutOrNone = None,
    resume: Resume = False,
    set_: Sets = None,
    dry_run: DryRun = False,
    flops: Flops = None,
) -> None:
    """Run a recipe and its baselines into a folder, with a report."""
    from fedsdr.api.runs import run
    from fedsdr.recipe.load import load_recipe

    folder = required_folder(out, dry_run, flops)
    with command_session(RESUME) as reporter:
        loaded = load_recipe(recipe, set_ or [])
        if dry_run:
            return print_dry_run(loaded, out, 1, flops, resume)
        found = run(loaded, folder, resume=resume, progress=reporter)
    return print_outcome(found)


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
    from fedsdr.api.runs import compare
    from fedsdr.recipe.load import load_recipe

    folder = required_folder(out, dry_run, flops)
    with command_session(RESUME) as reporter:
        loaded, chosen = load_recipe(recipe, set_ or []), parse_seeds(seeds)
        if dry_run:
            return print_dry_run(loaded, out, len(chosen), flops, resume)
        found = compare(loaded, folder, seeds=chosen, resume=resume, progress=reporter)
    return print_outcome(found)


def print_dry_run(
    recipe: "Recipe", out: Path | None, runs: int, flops: float | None, resume: bool
) -> None:
    """runs: how many seeds."""
    from fedsdr.api.recipes import plan
    from fedsdr.cli.plan import print_plan

    print_plan(plan(recipe, out, resume=resume, flops=flops), Console(), runs)


def required_folder(out: Path | None, dry_run: bool, flops: float | None) -> Path:
    """The run folder, which only a dry run can do without; it alone has a use for `flops`."""
    if flops is not None and not dry_run:
        raise typer.BadParameter("'--flops' is for an estimate: add --dry-run, or remove it.")
    if out is None and not dry_run:
        raise typer.BadParameter("Missing option '--out' (only --dry-run needs none).")
    return out or Path()


def report_command(
    folder: RunFolder,
    texts: Annotated[
        bool,
        typer.Option(
            "--texts/--no-texts", help="Whether to show a few of the clients' texts, as a run does."
        ),
    ] = True,
) -> None:
    """Write a run's report.html again; that of an unfinished run says what is missing."""
    from fedsdr.report.html import write_report

    with command_session():
        typer.echo(write_report(folder, texts=texts))


def print_outcome(found: "Run | Comparison") -> None:
    from fedsdr.report.terminal import print_summary

    print_summary(found.summary)
    typer.echo(f"\nreport: {found.report}")
