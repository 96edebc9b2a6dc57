"""Tables in a terminal of any width: columns where they fit, else one row below another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WRAPPED: Final = 20  # characters that a column of sentences has at least


@dataclass(frozen=True)
class Grid:
    """A table. heads: of its columns; the first column names the row. wraps: whether the last
    column holds sentences, which may span several lines."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    wraps: bool = False
    title: str = ""


def print_grid(grid: Grid, console: Console | None = None) -> None:
    """Print the table, or row by row where it does not fit; nothing is cut or overflows."""
    console = console or Console()
    if console.width >= _width(grid):
        console.print(_table(grid))
    else:
        print_rows(grid, console)


def _width(grid: Grid) -> int:
    """Columns that a table needs, with two spaces after each."""
    widths = [max(map(cell_len, each)) for each in zip(grid.heads, *grid.rows, strict=True)]
    if grid.wraps:
        widths[-1] = min(widths[-1], WRAPPED)
    return sum(widths) + 2 * len(widths)


def _table(grid: Grid) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        title=Text(grid.title) if grid.title else None, title_justify="left",
    )  # fmt: skip
    for number, head in enumerate(grid.heads, start=1):
        last = grid.wraps and number == len(grid.heads)
        table.add_column(Text(head), no_wrap=not last, overflow="fold")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return table


def print_rows(grid: Grid, console: Console) -> None:
    """Each row's cells one below another, with their heads; empty ones are left out."""
    if grid.title:
        console.print(Text(grid.title, style="italic", overflow="fold"))
    for name, *cells in grid.rows:
        console.print(Text(name, style="bold", overflow="fold"))
        for head, cell in zip(grid.heads[1:], cells, strict=True):
            if cell:
                line = Text(f"{head}: {cell}" if head else cell, overflow="fold")
                console.print(Padding(line, (0, 0, 0, 2), expand=False))
