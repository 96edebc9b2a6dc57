"""Commands that look at a recipe, its data and its choices before anything is run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from fedsdr.cli.clients_table import list_categories, print_clients
from fedsdr.cli.session import RecipePath, Sets, command_session
from fedsdr.core.console import Grid, print_rows

if TYPE_CHECKING:
    from fedsdr.algorithms.table import AlgorithmRow

SENTENCES: Final = 72  # characters, in which two columns of sentences can be read


def check_command(
    recipe: RecipePath,
    out: Annotated[
        Path | None, typer.Option(help="Also check that a run could be written into this folder.")
    ] = None,
    set_: Sets = None,
) -> None:
    """Check all that a run needs but the weights; show who holds what and what will be left out."""
    from fedsdr.api.recipes import check
    from fedsdr.recipe.load import load_recipe

    with command_session() as reporter:
        checked = check(load_recipe(recipe, set_ or []), out, progress=reporter)
        rows = [
            [
                row["name"], str(row["records"]), str(row["held_out"]),
                f"{row['mean_prompt_words']:.1f}", f"{row['mean_response_words']:.1f}",
                list_categories(row["categories"]),
            ]
            for row in checked.clients
        ]  # fmt: skip
    print_clients(("records", "held out", "words a prompt", "a response", "categories"), rows)
    typer.echo(f"chat template: {checked.template}")
    for notice in checked.notices:
        typer.echo(notice)


def algorithms_command() -> None:
    """List what a recipe can choose from: a line, a citation and the options of each."""
    from fedsdr.algorithms.table import TABLES

    console = Console()
    for key, rows in TABLES.items():
        cells = [_choice(name, row) for name, row in rows.items()]
        if console.width < SENTENCES:
            print_rows(Grid(("", "", ""), cells, title=key), console)
            continue
        table = Table(title=key, title_justify="left", box=None, show_header=False, expand=True)
        table.add_column(no_wrap=True, style="bold", min_width=12)
        table.add_column(ratio=3)
        table.add_column(ratio=2, style="dim")
        for each in cells:
            table.add_row(*each)
        console.print(table, "")


def _choice(name: str, row: "AlgorithmRow") -> list[str]:
    defaults = row.options().model_dump().items()
    options = ", ".join(f"{option} = {value}" for option, value in defaults)
    return [name, row.line + (f"\n{options}" if options else ""), row.citation]
