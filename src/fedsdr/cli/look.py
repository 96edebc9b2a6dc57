"""Commands that look at a recipe, its data and its choices before anything is run."""

from rich.console import Console
from rich.table import Table

from fedsdr.cli.session import RecipePath, Sets, session


def check(recipe: RecipePath, set_: Sets = None) -> None:
    """Check a recipe and its data without running anything; show who holds what."""
    from fedsdr import recipe as recipes
    from fedsdr.data.partition import describe
    from fedsdr.setting import prepare

    with session():
        setting = prepare(recipes.load_recipe(recipe, set_ or []))
        table = Table("client", "records", "held out", "words a prompt", "a response", "categories")
        for row in describe(setting.clients):
            kinds = ", ".join(f"{name} {count}" for name, count in row["categories"].items())
            table.add_row(
                row["name"], str(row["records"]), str(row["held_out"]),
                f"{row['mean_prompt_words']:.1f}", f"{row['mean_response_words']:.1f}", kinds,
            )  # fmt: skip
        Console().print(table)


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
