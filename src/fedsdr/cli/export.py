"""The command that hands a trained model on."""

from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.session import RunFolder, command_session

ModelName = Annotated[str, typer.Option(help="global, client:NAME, or a baseline's: METHOD.")]


def export_command(
    folder: RunFolder,
    out: Annotated[Path, typer.Option(help="A new folder for the model.")],
    model: ModelName = "global",
    merge: Annotated[bool, typer.Option("--merge", help="Whole weights, no adapter.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "",
    base: Annotated[
        str, typer.Option(help="What to call the base model, for those who load.")
    ] = "",
    client_names: Annotated[
        bool, typer.Option("--client-names", help="The card may name clients.")
    ] = False,
) -> None:
    """Write a model of a finished run as a PEFT adapter or merged, with tokenizer and card."""
    from fedsdr.api.runs import open_run

    with command_session() as reporter:
        open_run(folder).export(
            out, model, merged=merge, dtype=dtype, base=base, client_names=client_names,
            progress=reporter,
        )  # fmt: skip
    typer.echo(out)
