"""Who holds what, as `check` and `diagnose` print it."""

from collections.abc import Mapping, Sequence

from fedsdr.core.console import Grid, print_grid
from fedsdr.report.text import largest_counts

LARGEST_SHOWN = 3  # categories


def print_clients(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A row a client: its name, then a cell for each head."""
    print_grid(Grid(("client", *heads), rows, wraps=True))


def list_categories(categories: Mapping[str, int]) -> str:
    """The largest categories with their records."""
    return largest_counts(categories, LARGEST_SHOWN)
