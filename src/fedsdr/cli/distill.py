"""The distillation stage by itself: a pilot of it, the rewrites, a report of what they did."""

from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.session import RESUME, RecipePath, Resume, Sets, command_session
from fedsdr.core.errors import UserError


def distill_command(
    recipe: RecipePath,
    out: Annotated[Path | None, typer.Option(help="The folder; a run can go on in it.")] = None,
    pilot: Annotated[
        int | None, typer.Option(help="Rewrite N records a client and tell what all will cost.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write distillation.html, figures and texts.")
    ] = False,
    resume: Resume = False,
    set_: Sets = None,
) -> None:
    """Only rewrite: fills the rewrite cache, so that a later run does not generate again.

    With --pilot, a small sample is rewritten, judged and thrown away instead.
    """
    from fedsdr.api.recipes import distill, pilot_distillation
    from fedsdr.recipe.load import load_recipe
    from fedsdr.workflows.distill import describe_outcome, describe_pilots

    with command_session(RESUME) as reporter:
        loaded = load_recipe(recipe, set_ or [])
        if (out is None) == (pilot is None):
            raise UserError(
                "give --out DIR to rewrite everything, or --pilot N for a sample, one of them: "
                "where it pays, --out begins with a pilot of distill.pilot records"
            )
        if out is None:
            assert pilot is not None
            if report or resume:
                option = "--report" if report else "--resume"
                raise UserError(f"{option} is for --out DIR, and a pilot writes nothing: remove it")
            for name, pilots in pilot_distillation(loaded, pilot, progress=reporter).items():
                typer.echo(f"{name}: {describe_pilots(pilots)}")
            return
        folders = distill(loaded, out, resume=resume, report=report, progress=reporter)
        for name, folder in folders.items():
            typer.echo(describe_outcome(name, folder))
