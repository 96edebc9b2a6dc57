"""`fedsdr diagnose`: who holds what and how heterogeneous it is, before spending a GPU-hour."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedsdr.cli.clients_table import list_categories, print_clients
from fedsdr.cli.session import RecipePath, Sets, command_session

HEADS = ("records", "held", "prompt", "resp.", "cut", "out", "twice", "leaked", "categories")


def diagnose_command(
    recipe: RecipePath,
    out: Annotated[
        Path | None, typer.Option(help="Also write HTML, JSON and CSV into this new folder.")
    ] = None,
    gradients: Annotated[
        int | None,
        typer.Option(help="Records of each client for gradients; on by default if weights < 1 GB."),
    ] = None,
    distilled: Annotated[
        int | None, typer.Option(help="Rewrite that many records of each client, to compare.")
    ] = None,
    rewrites: Annotated[
        Path | None, typer.Option(help="A data file with rewrites as responses, to compare.")
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Load no weights.")] = False,
    set_: Sets = None,
) -> None:
    """Show who holds what, how heterogeneous it is, and what that suggests, before any training."""
    from fedsdr.api.recipes import diagnose
    from fedsdr.cli.plan import print_costs
    from fedsdr.recipe.load import load_recipe

    with command_session() as reporter:
        diagnosis = diagnose(
            load_recipe(recipe, set_ or []), out, gradients=gradients, distilled=distilled,
            rewrites=rewrites, weights=not no_model, progress=reporter,
        )  # fmt: skip
    print_diagnosis(diagnosis.found)
    typer.echo("\nWhat a run would take:")
    print_costs(diagnosis.plan, Console())
    if diagnosis.page is not None:
        typer.echo(f"\ndiagnosis: {diagnosis.page}")


def print_diagnosis(found: Mapping[str, Any]) -> None:
    rows = [
        [
            c["name"], str(c["records"]), str(c["held_out"]),
            f"{c['prompt_tokens']['quantiles'][2]:.0f}",
            f"{c['response_tokens']['quantiles'][2]:.0f}",
            str(c["truncated"]), str(c["left_out"]), str(c["repeated"]),
            str(c["leaked"] + c["leaked_across"]), list_categories(c["categories"]),
        ]
        for c in found["clients"]
    ]  # fmt: skip
    print_clients(HEADS, rows)
    typer.echo(
        f"prompt, resp.: median tokens, of {found['max_length']} for both; cut: responses; "
        "out: records left out, their prompt is too long\n"
    )
    from fedsdr.report.diagnosis import change_rows, interval_text

    if "apart" in found:
        typer.echo(f"Jensen-Shannon divergence, bits: {interval_text(found['apart']['mean_js'])}")
        typer.echo(f"TF-IDF cosine: {interval_text(found['apart']['mean_tfidf'])}")
    if "gradients" in found:
        typer.echo(f"cosine of gradients: {interval_text(found['gradients']['mean'])}")
    for name, raw, rewritten, difference in change_rows(found):
        typer.echo(f"{name}: raw {raw}, rewritten {rewritten}, difference {difference}")
    for sentence in found["reading"]:
        typer.echo(f"\n* {sentence}")
