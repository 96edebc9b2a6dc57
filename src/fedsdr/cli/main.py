"""The `fedsdr` command and its subcommands."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import typer

from fedsdr import __version__
from fedsdr.cli import chat, deploy, diagnose, distill, evaluate, export, judge, look, runs
from fedsdr.core.errors import REMEDIES, WriteError

app = typer.Typer(
    help="Federated fine-tuning of language models with self-distillation and rectification.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def version_command() -> None:
    """Print the version."""
    typer.echo(__version__)


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "demo": runs.demo_command,
    "run": runs.run_command,
    "compare": runs.compare_command,
    "distill": distill.distill_command,
    "check": look.check_command,
    "diagnose": diagnose.diagnose_command,
    "algorithms": look.algorithms_command,
    "report": runs.report_command,
    "export": export.export_command,
    "chat": chat.chat_command,
    "judge": judge.judge_command,
    "status": deploy.status_command,
    "version": version_command,
    "eval": evaluate.eval_command,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(deploy.app, name="deploy")


def main() -> None:
    """Status 0: done, 2: the user's mistake, 130: interrupted, 1: a defect of ours."""
    signal.signal(signal.SIGINT, _leave)
    try:
        app()
    except OSError as error:
        if error.filename is not None or error.errno not in REMEDIES:
            raise
        os.write(2, f"error: {WriteError(Path('standard output'), error)}\n".encode())
        os._exit(2)  # Python would try to write the rest once more


def _leave(signum: int, frame: object) -> None:
    """Ctrl-C while libraries load, which would turn it into errors of their own."""
    os.write(2, b"interrupted before anything began\n")
    os._exit(130)
