"""Put benchmarks to the models of a finished run, or to a plain model folder."""

from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.session import command_session


def eval_command(
    target: Annotated[
        Path, typer.Argument(help="A finished run, or with --out a model folder or GGUF file.")
    ],
    tasks: Annotated[
        str, typer.Option(help="Comma-separated: mmlu,bbh,drop,crass,gsm8k,truthfulqa,arc_easy,"
                            "arc_challenge,piqa,openbookqa or hub:NAME")
    ],
    data: Annotated[
        Path | None, typer.Option(help="The folder of the benchmarks' files: docs/benchmarks.md.")
    ] = None,
    models: Annotated[
        str,
        typer.Option(help="Comma-separated, e.g. base,global,client:NAME, or all; "
                     "the base and every global model where not given."),
    ] = "",
    limit: Annotated[int | None, typer.Option(help="Most questions of each subject.")] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat/--no-chat", help="Ask through the model's chat template, or as text."),
    ] = False,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Begin prompts with the token that begins a text, or "
                     "not; by default as the tokenizer does, or with --chat the template."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 8,
    against: Annotated[
        Path | None, typer.Option(help="Another evaluated run, to compare question by question.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results go; benchmarks/ of the run by default.")
    ] = None,
) -> None:  # fmt: skip
    """Evaluate a run's models on benchmarks; what is done already is not done again.

    Writes results with standard errors and the score of every question, pairs each model with
    the base model, and adds a section to the report.
    """
    from fedsdr.api.runs import benchmark_models
    from fedsdr.report.terminal import print_benchmarks

    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    with command_session() as reporter:
        summary = benchmark_models(
            target, names(tasks), data=data, models=names(models), out=out, against=against,
            limit=limit, chat=chat, bos=bos, batch_size=batch_size, progress=reporter,
        )  # fmt: skip
    print_benchmarks(summary)
