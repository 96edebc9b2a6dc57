"""What all commands have in common: their options, progress, and errors turned into exit codes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fedsdr.core.errors import REMEDIES, UserError, WriteError
from fedsdr.core.progress import Reporter, terminal_reporter
from fedsdr.core.quiet import quiet_libraries

RecipePath = Annotated[Path, typer.Argument(help="A TOML recipe; see recipes/.")]
RunFolder = Annotated[Path, typer.Argument(help="A finished run or comparison.")]
Out = Annotated[Path, typer.Option(help="The run folder. A folder in use is never written over.")]
OutOrNone = Annotated[
    Path | None, typer.Option("--out", help="The run folder. One in use is never written over.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what it would take; load and write nothing.")
]
Flops = Annotated[
    float | None,
    typer.Option(help="With --dry-run: operations a second, instead of measuring this device."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in --out.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key, e.g. --set federation.rounds=4")
]


RESUME = "go on with --resume"


@contextmanager
def command_session(go_on: str = "give the same command again") -> Iterator[Reporter]:
    """Quiet libraries, draw progress, and turn the user's mistakes into one line and status 2.

    go_on: the remedy that is printed after an interrupt, or for a full disk.
    """
    quiet_libraries()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reporter = terminal_reporter()
    try:
        with reporter.live():
            yield reporter
    except WriteError as error:
        typer.echo(f"error: {error}, and {go_on}", err=True)
        raise SystemExit(2) from None
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in REMEDIES:  # else a library's own file, a temporary one say
            raise
        typer.echo(f"error: {WriteError(error.filename or 'a file', error)}, and {go_on}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"interrupted: nothing is lost, {go_on}", err=True)
        raise SystemExit(130) from None


def parse_seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r}: expected whole numbers like 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text!r}: a seed given twice is not two runs")
    return seeds
