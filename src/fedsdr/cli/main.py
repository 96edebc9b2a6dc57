"""The `fedsdr` command and its subcommands."""

import logging
import os
import signal

import typer

from fedsdr import __version__
from fedsdr.cli import chat, deploy, diagnose, evaluate, export, judge, look, runs
from fedsdr.cli import distill as distil

# It gives advice when imported, which is when the work begins; in processes of our own too.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

app = typer.Typer(
    help="Federated fine-tuning of language models with self-distillation and rectification.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def version() -> None:
    """Print the version."""
    typer.echo(__version__)


for command in (
    runs.demo,
    runs.run,
    runs.compare,
    distil.distill,
    look.check,
    diagnose.diagnose,
    look.algorithms,
    runs.report,
    export.export,
    chat.chat,
    judge.judge,
    deploy.status,
    version,
):
    app.command()(command)
app.command("eval")(evaluate.evaluate)
app.add_typer(deploy.app, name="deploy")


def main() -> None:
    """Status 0: done, 2: the user's mistake, 130: interrupted, 1: a defect of ours."""
    signal.signal(signal.SIGINT, _leave)
    app()


def _leave(signum: int, frame: object) -> None:
    """Ctrl-C while libraries load, which would turn it into errors of their own."""
    os.write(2, b"interrupted before anything began\n")
    os._exit(130)


if __name__ == "__main__":
    main()
