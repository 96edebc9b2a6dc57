"""The command line: thin, and the only place where errors become exit codes."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedsdr import __version__
from fedsdr.errors import UserError
from fedsdr.progress import Reporter, terminal
from fedsdr.quiet import quiet_libraries

app = typer.Typer(
    help="Federated fine-tuning of language models with self-distillation and rectification.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RecipePath = Annotated[Path, typer.Argument(help="A TOML recipe; see recipes/.")]
Out = Annotated[Path, typer.Option(help="The run folder. A folder in use is never written over.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key, e.g. --set federation.rounds=4")
]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seeds: Annotated[str, typer.Option(help="Comma-separated, e.g. 0,1,2")] = "0,1,2",
) -> None:
    """Run the whole method on the embedded lab in a few minutes and write a report.

    An interrupted demo goes on where it stopped; a finished one is run anew.
    """
    from fedsdr import run as runs

    with _session() as reporter:
        summary = runs.demo(out, _seeds(seeds), reporter)
    _finish(out, summary)


@app.command()
def run(recipe: RecipePath, out: Out, resume: Resume = False, set_: Sets = None) -> None:
    """Run a recipe and its baselines into a folder, with a report."""
    from fedsdr import recipe as recipes
    from fedsdr import run as runs

    with _session() as reporter:
        loaded = recipes.load_recipe(recipe, set_ or [])
        summary = runs.run(loaded, out, reporter, resume)
    _finish(out, summary)


@app.command()
def compare(
    recipe: RecipePath,
    out: Out,
    seeds: Annotated[str, typer.Option(help="Comma-separated, e.g. 0,1,2")] = "0,1,2",
    resume: Resume = False,
    set_: Sets = None,
) -> None:
    """Run a recipe and its baselines for several seeds; report means with 95 % intervals."""
    from fedsdr import recipe as recipes
    from fedsdr import run as runs

    with _session() as reporter:
        loaded = recipes.load_recipe(recipe, set_ or [])
        summary = runs.compare(loaded, _seeds(seeds), out, reporter, resume)
    _finish(out, summary)


@app.command()
def reproduce(
    out: Out = Path("runs/evidence"),
    seeds: Annotated[str, typer.Option(help="Comma-separated, e.g. 0,1,2,3,4")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer experiments, two seeds.")] = False,
    only: Annotated[str, typer.Option(help="Comma-separated experiments, instead of all.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 2,
) -> None:
    """Test the paper's claims on the lab and write evidence.md with its figures.

    What is done already in --out is not done again. The full form takes hours.
    """
    from fedsdr.evidence.document import choose_experiments
    from fedsdr.evidence.document import reproduce as run_all

    with _session() as reporter:
        chosen = _seeds(seeds or ("0,1" if quick else "0,1,2,3,4"))
        document = run_all(out, chosen, choose_experiments(only, quick), jobs, reporter)
    typer.echo(f"\nevidence: {document}")


@app.command()
def check(recipe: RecipePath, set_: Sets = None) -> None:
    """Check a recipe and its data without running anything; show who holds what."""
    from fedsdr import recipe as recipes
    from fedsdr.data.partition import describe
    from fedsdr.setting import prepare

    with _session():
        setting = prepare(recipes.load_recipe(recipe, set_ or []))
        table = Table("client", "records", "held out", "words a prompt", "a response", "categories")
        for row in describe(setting.clients):
            kinds = ", ".join(f"{name} {count}" for name, count in row["categories"].items())
            table.add_row(
                row["name"], str(row["records"]), str(row["held_out"]),
                f"{row['mean_prompt_words']:.1f}", f"{row['mean_response_words']:.1f}", kinds,
            )  # fmt: skip
        Console().print(table)


@app.command()
def algorithms() -> None:
    """List what a recipe can choose from: a line, a citation and the options of each."""
    from fedsdr.algorithms.table import TABLES

    for key, rows in TABLES.items():
        table = Table(title=key, title_justify="left", box=None, show_header=False, expand=True)
        table.add_column(no_wrap=True, style="bold", min_width=12)
        table.add_column(ratio=3)
        table.add_column(ratio=2, style="dim")
        for name, row in rows.items():
            defaults = row.options().model_dump().items()
            options = ", ".join(f"{option} = {value}" for option, value in defaults)
            table.add_row(name, row.line + (f"\n{options}" if options else ""), row.citation)
        Console().print(table, "")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A finished run or comparison.")]) -> None:
    """Write a run's report.html anew."""
    from fedsdr.report.html import write_report

    with _session():
        typer.echo(write_report(folder))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """The `fedsdr` command: 0 done, 2 the user's mistake, 130 interrupted, 1 a defect of ours."""
    signal.signal(signal.SIGINT, _leave)
    app()


def _leave(signum: int, frame: object) -> None:
    """Ctrl-C while libraries load, which would turn it into errors of their own."""
    os.write(2, b"interrupted before anything began\n")
    os._exit(130)


@contextmanager
def _session() -> Iterator[Reporter]:
    """Quiet libraries, draw progress, and turn the user's mistakes into one line and status 2."""
    quiet_libraries()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reporter = terminal()
    try:
        with reporter.live():
            yield reporter
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: nothing is lost, go on with --resume", err=True)
        raise SystemExit(130) from None


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r}: expected whole numbers like 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text!r}: a seed given twice is not two runs")
    return seeds


def _finish(out: Path, summary: dict[str, object]) -> None:
    from fedsdr.report.terminal import print_summary

    print_summary(summary)
    typer.echo(f"\nreport: {out / 'report.html'}")


if __name__ == "__main__":
    main()
