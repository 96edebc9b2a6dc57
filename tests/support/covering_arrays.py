"""Few combinations that show all pairs (a covering array of strength two)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

Row = dict[str, str]  # a choice from each table
Tables = Mapping[str, Sequence[str]]
Pair = frozenset[tuple[str, str]]


def pairs_of(row: Mapping[str, str]) -> set[Pair]:
    return {frozenset(two) for two in combinations(row.items(), 2)}


def allowed_pairs(tables: Tables, allowed: Callable[[Row], bool]) -> set[Pair]:
    """Two choices of two tables that go together, all else plain: the first of its table."""
    plain = {key: names[0] for key, names in tables.items()}
    return {
        frozenset(((one, a), (other, b)))
        for one, other in combinations(tables, 2)
        for a, b in product(tables[one], tables[other])
        if allowed({**plain, one: a, other: b})
    }


def covering(tables: Tables, pairs: set[Pair]) -> list[Row]:
    """Rows of allowed pairs alone that have every one of them, by a greedy search.

    Each row begins with a missing pair and takes, table by table, the choice that goes with what
    it has and brings the most missing pairs. The plain choice goes with everything.
    """
    missing, rows = set(pairs), []
    while missing:
        row = dict(sorted(min(missing, key=sorted)))
        for key in [key for key in tables if key not in row]:
            found = {name: pairs_of({**row, key: name}) for name in tables[key]}
            fits = [name for name in tables[key] if found[name] <= pairs]
            row[key] = max(fits, key=lambda name, found=found: len(found[name] & missing))
        missing -= pairs_of(row)
        rows.append({key: row[key] for key in tables})
    return rows
