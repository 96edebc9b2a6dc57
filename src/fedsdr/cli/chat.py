"""The command that talks to a trained model."""

import sys
from typing import Annotated

import typer

from fedsdr.cli.session import RunFolder, command_session


def chat_command(
    folder: RunFolder,
    client: Annotated[str, typer.Option(help="Talk to this client's personal model.")] = "",
    model: Annotated[str, typer.Option(help="global, base, client:NAME, or METHOD.")] = "",
    system: Annotated[str, typer.Option(help="A system prompt.")] = "",
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="Of sampling, where temperature is above 0.")] = 0,
) -> None:
    """Talk to a model of a finished run. Questions may come through a pipe, one a line."""
    from fedsdr.api.runs import open_run
    from fedsdr.chat.terminal import HELP, chat_loop, typed_lines
    from fedsdr.core.errors import UserError
    from fedsdr.workflows.finished import CLIENT_PREFIX, GLOBAL_MODEL

    def notice(text: str) -> None:
        typer.echo(text, err=True)

    live = sys.stdin.isatty()
    with command_session() as reporter:
        if client and model:
            raise UserError(f"--client {client} and --model {model}: give one of them")
        run = open_run(folder)
        name = CLIENT_PREFIX + client if client else model or GLOBAL_MODEL
        conversation = run.chat(
            name, system=system, temperature=temperature, max_tokens=max_tokens, seed=seed,
            notice=notice, progress=reporter,
        )  # fmt: skip
    # Outside of the session: bars are gone, and Ctrl-C is the chat's.
    try:
        if live:
            notice(f"{name}, of {', '.join(run.models)}\n{HELP}   Ctrl-D: leave")
        lines = typed_lines(lambda: f"{conversation.name}> ") if live else sys.stdin
        chat_loop(conversation, lines, sys.stdout, notice, live)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
