"""The command that tests `fedsdr2` on seeds that it was not chosen by: `python -m
experiments.beyond`."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.archive import unpack_cells
from experiments.beyond.document import write_beyond
from experiments.beyond.plan import WORLDS, seed_groups
from experiments.runner import CELLS_FOLDER, run_groups
from fedsdr.cli.session import Out, command_session
from fedsdr.core.errors import UserError
from fedsdr.workflows.run_folder import locked_folder

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def beyond(
    out: Out = Path("runs/beyond"),
    only: Annotated[str, typer.Option(help="lab or english, instead of both.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 2,
    cells: Annotated[
        list[Path] | None,
        typer.Option(help="Finished cells, cells.jsonl.xz of documents: not run again."),
    ] = None,
    confirm: Annotated[
        bool, typer.Option(help="Run the seeds that confirm the choice, too.")
    ] = True,
    write: Annotated[
        bool, typer.Option("--write", help="Write the document of what is finished; run nothing.")
    ] = False,
) -> None:
    """Run `fedsdr2` and its rivals on the seeds that it was chosen by and on those that confirm it,
    and write beyond.md with its figures.

    What is done already in --out is not done again. The lab takes hours on two cores, the English
    lab an hour a seed.
    """
    with command_session("go on with the same command") as reporter:
        if only and only not in WORLDS:
            raise UserError(f"--only names {only!r}: choose from {', '.join(WORLDS)}")
        for archive in cells or ():
            count = unpack_cells(archive, out / CELLS_FOLDER)
            reporter.say(f"{count} finished cells from {archive}")
        if not write:
            chosen = [WORLDS[only]] if only else [*WORLDS.values()]
            with locked_folder(out):
                for development in (True, False) if confirm else (True,):
                    groups = [g for world in chosen for g in seed_groups(world, development)]
                    run_groups(groups, out, jobs, reporter)
        document = write_beyond(out)
    typer.echo(f"\nbeyond: {document}")


if __name__ == "__main__":
    app(prog_name="experiments.beyond")
