"""The command that tests the paper's claims on a pretrained model: `python -m experiments.real`."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.real.document import (
    check_unfinished,
    choose_experiments,
    unpack_known,
    write_real,
)
from experiments.real.plan import planned_cells, seed_groups
from experiments.runner import run_groups
from fedsdr.cli.session import Out, command_session, parse_seeds
from fedsdr.workflows.run_folder import locked_folder

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def real(
    out: Out = Path("runs/real"),
    seeds: Annotated[str, typer.Option(help="Comma-separated, e.g. 0,1,2,3,4")] = "0,1,2",
    only: Annotated[str, typer.Option(help="english or domains, instead of both.")] = "",
    model: Annotated[
        str | None, typer.Option(help="A model folder, file or name, instead of SmolLM2's.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 2,
    cells: Annotated[
        Path | None,
        typer.Option(help="Finished cells, real/cells.jsonl.xz of a document: not run again."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the document of what is finished; run nothing.")
    ] = False,
) -> None:
    """Test the paper's claims on a pretrained model and write real.md with its figures.

    What is done already in --out is not done again. A seed takes hours on two cores; cells are run
    seed by seed. The domains need the files of recipes/five_domains.toml in FEDSDR_DATA, and the
    benchmarks' in FEDSDR_EVAL.
    """
    with command_session("go on with the same command") as reporter:
        chosen, names = parse_seeds(seeds), choose_experiments(only)
        planned = planned_cells(names, model)
        if cells is not None:
            reporter.say(f"{unpack_known(cells, out)} finished cells from {cells}")
        if not write:
            with locked_folder(out):
                check_unfinished(planned, chosen, out, reporter)
                run_groups(seed_groups(planned, chosen), out, jobs, reporter)
        words = [*(["--only", only] if only else []), *(["--model", model] if model else [])]
        command = " ".join(["python -m experiments.real", *words, "--seeds", seeds])
        document = write_real(out, planned, chosen, command)
    typer.echo(f"\nreal: {document}")


if __name__ == "__main__":
    app(prog_name="experiments.real")
