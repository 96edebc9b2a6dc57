"""Commands that look at a recipe, its data and its choices before anything is run."""

import typer
from rich.console import Console
from rich.table import Table

from fedsdr.cli.holdings import listed, print_holdings
from fedsdr.cli.session import RecipePath, Sets, session


def check(recipe: RecipePath, set_: Sets = None) -> None:
    """Check a recipe and its data without running anything; show who holds what."""
    from fedsdr import recipe as recipes
    from fedsdr.data.partition import describe
    from fedsdr.data.sources import skipped_rows
    from fedsdr.setting import prepare

    with session():
        setting = prepare(recipes.load_recipe(recipe, set_ or []))
        rows = [
            [
                row["name"], str(row["records"]), str(row["held_out"]),
                f"{row['mean_prompt_words']:.1f}", f"{row['mean_response_words']:.1f}",
                listed(row["categories"]),
            ]
            for row in describe(setting.clients)
        ]  # fmt: skip
        skipped = skipped_rows(setting.recipe.data.sources)
    print_holdings(("records", "held out", "words a prompt", "a response", "categories"), rows)
    for each in skipped:
        typer.echo(f"{each.file}: {each.skipped} of {each.rows} rows skipped, without a response")


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
