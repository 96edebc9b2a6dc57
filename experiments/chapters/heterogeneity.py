"""Data heterogeneity, number of clients, partial participation, and clients that join late."""

from collections.abc import Callable
from statistics import fmean
from typing import Final

from experiments import plan
from experiments.chapter import Chapter, Figure, Table, format_estimate
from experiments.chapters.shared import (
    GLOBAL,
    PERSONAL,
    at_equal_facts,
    clients_of,
    overview_table,
    sweep_figure,
)
from experiments.plan import ALPHAS, CLIENTS, MAIN, PARTICIPATION, Cell, Cells
from experiments.results import Results
from fedsdr.algorithms.participation import present_clients
from fedsdr.core.statistics import Estimate, t_interval
from fedsdr.evaluate.verdicts import Claim, Condition
from fedsdr.report.labels import method_label as label

SCORES: Final = ("client_facts", "general")
NEWCOMERS: Final = {"two of five late": "half of the rounds", "two of five never": "no round"}


def heterogeneity_chapter(results: Results) -> Chapter:
    cells = plan.heterogeneity_cells()
    return Chapter(
        "Heterogeneity and scale",
        "Facts distributed to five clients by Dirichlet(alpha), from almost exclusive to uniform "
        "(styles stay the clients' own); 2 to 20 clients, and 50 of which a fifth take part in "
        "each round; 10 to 100 % of 20 clients; two clients of each kind, one with nine times as "
        "many facts; two of five clients that join after half of the rounds, or never do: such a "
        "client has the global model and no S.",
        [
            Claim(
                "FedSD keeps more general knowledge than FedAvg at any heterogeneity, after as "
                "many rounds",
                _kept(results, cells, lambda a, b: results.difference(a, b, "general")),
            ),
            Claim(
                "FedSD keeps more general knowledge than FedAvg at any heterogeneity, at equal "
                "client facts",
                _kept(results, cells, lambda a, b: at_equal_facts(results, a, b)),
            ),
            Claim(
                "A client that never took part is served better by FedSDR's global model, without "
                "an S, than by FedAvg's",
                [_cold(results, cells, metric) for metric in SCORES],
            ),
            Claim(
                "Clients know more of their own facts by FedSDR's personal models than by FedAvg's "
                "global one (a comparison added after its numbers had been seen)",
                [*_personal(results, cells), _small(results, cells)],
            ),
        ],
        [
            ("Newcomers' own models", _newcomers(results, cells)),
            ("Large and small clients' own models", _sizes(results, cells)),
            ("All cells", overview_table(results, cells, GLOBAL | PERSONAL)),
        ],
        _figures(results, cells),
    )


def _kept(
    results: Results, cells: Cells, measure: Callable[[Cell, Cell], Estimate | None]
) -> list[Condition]:
    pairs = {a: (cells[f"fedsd alpha {a:g}"], cells[f"fedavg alpha {a:g}"]) for a in ALPHAS}
    return [Condition(f"alpha {alpha:g}", measure(*pair)) for alpha, pair in pairs.items()]


def _figures(results: Results, cells: Cells) -> list[Figure]:
    few, *more = CLIENTS
    full = 20  # clients
    mixed = {m: [cells[f"{m} alpha {alpha:g}"] for alpha in ALPHAS] for m in MAIN}
    counted = {
        m: [cells[f"{m} clients {few}"], Cell(m), *(cells[f"{m} clients {k}"] for k in more)]
        for m in MAIN
    }
    partly = {
        m: [
            *(cells[f"{m} {100 * share:g} % of {full}"] for share in PARTICIPATION),
            cells[f"{m} clients {full}"],
        ]
        for m in MAIN
    }
    shares = [100 * share for share in (*PARTICIPATION, 1.0)]
    return [
        sweep_figure(results, "heterogeneity", "alpha", ALPHAS, mixed, log=True),
        sweep_figure(results, "clients", "clients", (few, 5, *more), counted, log=True),
        sweep_figure(results, "participation", "percent of 20 clients in a round", shares, partly),
    ]


def _late(cell: Cell, seed: int) -> tuple[list[str], list[str]]:
    """Names of the clients that are there from the first round, and of the others."""
    recipe = cell.recipe(seed)
    names = [client.name for client in clients_of(cell, seed)]
    there = present_clients(names, recipe.federation.late, recipe.federation.late_round, 1)
    return [*there], [name for name in names if name not in there]


def _of_clients(results: Results, cell: Cell, seed: int, names: list[str], metric: str) -> float:
    scores = results.clients(cell, seed)
    return fmean(scores[name][metric] for name in names)


def _pair(cells: Cells, which: str) -> tuple[Cell, Cell]:
    """FedSDR and FedAvg in one setting."""
    return cells[f"fedsdr {which}"], cells[f"fedavg {which}"]


def _cold(results: Results, cells: Cells, metric: str) -> Condition:
    pair = _pair(cells, "two of five never")
    difference = _served(results, *pair, lambda cell, seed: _late(cell, seed)[1], metric)
    return Condition(f"{metric}, FedSDR - FedAvg", difference)


def _small(results: Results, cells: Cells) -> Condition:
    pair = _pair(cells, "unequal")
    few = _served(results, *pair, lambda cell, seed: _by_size(cell, seed)[1], "client_facts")
    return Condition("the small ones of ten unequal clients", few)


def _served(
    results: Results, a: Cell, b: Cell, who: Callable[[Cell, int], list[str]], metric: str
) -> Estimate | None:
    """By how much some clients are served better by their own models of `a` than of `b`."""
    differences = []
    for seed in results.done(a, b):
        one, other = (_of_clients(results, cell, seed, who(a, seed), metric) for cell in (a, b))
        differences.append(one - other)
    return t_interval(differences) if differences else None


def _personal(results: Results, cells: Cells) -> list[Condition]:
    settings = {f"{count} clients": f"clients {count}" for count in CLIENTS}
    settings["a fifth of 50 clients in a round"] = "20 % of 50"
    return [
        Condition(name, results.difference(*_pair(cells, which), "personal_client_facts"))
        for name, which in settings.items()
    ]


def _newcomers(results: Results, cells: Cells) -> Table:
    """Means of own models over those who were there from the first round, and over the others."""
    asked = [
        (label(method).short, rounds, cells[f"{method} {when}"], cells[f"{method} {when}"])
        for method in MAIN
        for when, rounds in NEWCOMERS.items()
    ]
    asked.append((label("base").short, "no round", Cell("base"), cells["fedavg two of five never"]))
    rows = []
    for name, rounds, judged, split in asked:
        seeds = results.done(judged, split)
        if not seeds:
            continue
        sides = {seed: _late(split, seed) for seed in seeds}
        means = [
            t_interval([_of_clients(results, judged, s, sides[s][side], metric) for s in seeds])
            for side in (0, 1)
            for metric in SCORES
        ]
        rows.append([name, rounds, *map(format_estimate, means), str(len(seeds))])
    columns = [f"{who}: {GLOBAL[metric]}" for who in ("founders", "newcomers") for metric in SCORES]
    return Table(["method", "newcomers took part in", *columns, "seeds"], rows)


def _sizes(results: Results, cells: Cells) -> Table:
    """Of the clients of one kind, the one that holds most facts and the one that holds fewest."""
    rows = []
    for method in MAIN:
        cell = cells[f"{method} unequal"]
        if seeds := results.done(cell):
            sizes = [_by_size(cell, seed) for seed in seeds]
            means: list[Estimate] = [
                t_interval(
                    [
                        _of_clients(results, cell, seed, size[side], metric)
                        for seed, size in zip(seeds, sizes, strict=True)
                    ]
                )
                for side in (0, 1)
                for metric in SCORES
            ]
            rows.append([label(method).short, *map(format_estimate, means), str(len(seeds))])
    columns = [f"{who}: {GLOBAL[metric]}" for who in ("large", "small") for metric in SCORES]
    return Table(["method", *columns, "seeds"], rows)


def _by_size(cell: Cell, seed: int) -> tuple[list[str], list[str]]:
    """Names of the clients with more, and with fewer records than the mean."""
    records = {client.name: len(client.train) for client in clients_of(cell, seed)}
    mean = fmean(records.values())
    large = [name for name, count in records.items() if count > mean]
    return large, [name for name in records if name not in large]
