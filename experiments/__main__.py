"""The command that tests the paper's claims on the lab: `python -m experiments`."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.document import choose_experiments, write_evidence
from fedsdr.cli.session import Out, command_session, parse_seeds

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def evidence(
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
    with command_session("go on with the same command") as reporter:
        chosen = parse_seeds(seeds or ("0,1" if quick else "0,1,2,3,4"))
        names = choose_experiments(only, quick)
        document = write_evidence(out, chosen, names, jobs, reporter, quick, cells)
    typer.echo(f"\nevidence: {document}")


if __name__ == "__main__":
    app(prog_name="experiments")
