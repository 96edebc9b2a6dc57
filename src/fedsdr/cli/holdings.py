"""The table of who holds what, as `check` and `diagnose` print it."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

SHOWN = 3  # categories


def print_holdings(
    heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None
) -> None:
    """A row a client: its name, then a cell for each head, the last one wrapped to what is left."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    *narrow, wide = ("client", *heads)
    for head in narrow:
        table.add_column(head, no_wrap=True)
    table.add_column(wide, overflow="fold")
    for row in rows:
        table.add_row(*row)
    (console or Console()).print(table)


def listed(categories: Mapping[str, int]) -> str:
    """The largest categories with their records."""
    from fedsdr.report.text import largest  # its package is slow to import

    return largest(categories, SHOWN)
