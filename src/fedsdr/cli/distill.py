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
    from fedsdr.recipe import load as recipes
    from fedsdr.workflows import distill as distillation

    with command_session(RESUME) as reporter:
        loaded = recipes.load_recipe(recipe, set_ or [])
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
            typer.echo(distillation.pilot_report(loaded, pilot, reporter))
            return
        for name, folder in distillation.run_distillation(
            loaded, out, reporter, resume, report
        ).items():
            typer.echo(distillation.describe_outcome(name, folder))
