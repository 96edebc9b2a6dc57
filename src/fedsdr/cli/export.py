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
    from fedsdr.export.card import is_folder
    from fedsdr.export.write import ExportChoice, export_model
    from fedsdr.workflows.finished import open_finished

    with command_session() as reporter:
        run = open_finished(folder)
        choice = ExportChoice(model, merge, dtype, base, client_names)
        written = export_model(run, choice, out, reporter)
        if run.place(model)[1]:
            reporter.say(f"{out} holds a client's private stream: it is that client's alone")
        if is_folder(written.base):
            reporter.say(f"it calls its base model {written.base}: --base gives a public name")
    typer.echo(out)
