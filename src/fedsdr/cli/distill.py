"""The distillation stage by itself: a pilot of it, the rewrites, a report of what they did."""

from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.session import RESUME, RecipePath, Resume, Sets, command_session
from fedsdr.core.errors import UserError


def distill_command(
    recipe: RecipePath,
    file: Annotated[
        Path | None,
        typer.Argument(help="With --prompts: your own ones, a TOML file of name = text, or one."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder; a run can go on in it.")] = None,
    pilot: Annotated[
        int | None, typer.Option(help="Rewrite N records a client and tell what all will cost.")
    ] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Compare rewriting prompts on a sample (--pilot N).")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write distillation.html, figures and texts.")
    ] = False,
    resume: Resume = False,
    set_: Sets = None,
) -> None:
    """Only rewrite: fills the rewrite cache, so that a later run does not generate again.

    With --pilot, a small sample is rewritten, judged and thrown away instead; with --prompts, the
    same sample with each of several prompts.
    """
    from fedsdr.api.recipes import compare_prompts, distill, pilot_distillation
    from fedsdr.cli.prompts import print_comparison
    from fedsdr.recipe.load import load_recipe
    from fedsdr.workflows.distill import describe_outcome, describe_pilots
    from fedsdr.workflows.prompts import PROMPT_SAMPLE

    with command_session(RESUME) as reporter:
        loaded = load_recipe(recipe, set_ or [])
        _check_options(file, out, pilot, prompts, report, resume)
        if prompts:
            records = PROMPT_SAMPLE if pilot is None else pilot
            print_comparison(compare_prompts(loaded, file, records, progress=reporter))
        elif out is None:
            assert pilot is not None
            for name, pilots in pilot_distillation(loaded, pilot, progress=reporter).items():
                typer.echo(f"{name}: {describe_pilots(pilots)}")
        else:
            folders = distill(loaded, out, resume=resume, report=report, progress=reporter)
            for name, folder in folders.items():
                typer.echo(describe_outcome(name, folder))


def _check_options(
    file: Path | None,
    out: Path | None,
    pilot: int | None,
    prompts: bool,
    report: bool,
    resume: bool,
) -> None:
    """Raise `UserError` for options that do not go together."""
    if file is not None and not prompts:
        raise UserError(f"a file of prompts, {file}, is for --prompts: add it, or remove the file")
    if prompts and out is not None:
        raise UserError("--prompts compares on a sample and writes nothing: remove --out")
    if not prompts and (out is None) == (pilot is None):
        raise UserError(
            "give --out DIR to rewrite everything, or --pilot N for a sample, one of them: "
            "where it pays, --out begins with a pilot of distill.pilot records"
        )
    if out is None and (report or resume):
        option = "--report" if report else "--resume"
        raise UserError(f"{option} is for --out DIR, and a pilot writes nothing: remove it")
