"""FedSDR's open choices, one changed at a time."""

from experiments import plan
from experiments.chapter import Chapter, Figure, Table, format_estimate
from experiments.chapters.shared import (
    GLOBAL,
    PERSONAL,
    front_figure,
    overview_table,
    rounds_figure,
    unique_cells,
)
from experiments.plan import Cell, Cells
from experiments.results import Results
from fedsdr.core.statistics import t_interval
from fedsdr.evaluate.verdicts import Claim, Condition

COMPARED = ("client_facts", "general", "hallucination", *PERSONAL)


def ablations_chapter(results: Results) -> Chapter:
    cells = plan.ablations_cells()
    own, literal = cells["fedsdr"], cells["as the equations say"]
    remedies = {
        "stage 1 without R": "literal, base context",
        "S reset": "literal, S reset",
        "R alone in half of the batches": "literal, R alone 0.5",
    }
    remedied = [
        Condition(f"{metric}, {what} - literal form", results.difference(cells[n], literal, metric))
        for what, n in (*remedies.items(), ("the default", "fedsdr"))
        for metric in ("general", "client_facts")
    ]
    taught = [
        Condition(
            f"{metric}, consolidated - not, R never alone",
            results.difference(cells["consolidated, R alone 0"], cells["R alone 0"], metric),
        )
        for metric in ("client_facts", "general")
    ]
    stable = [
        Condition(f"{metric}, literal form - default", results.difference(literal, own, metric))
        for metric in ("general", "client_facts")
    ]
    return Chapter(
        "FedSDR's open choices",
        "Each row changes one choice of the shipped default. Differences are to the default, "
        "paired by seed; the cosine is that of the two streams' weight updates in a round, below "
        "zero where each undoes the other. At equal facts nothing is said of what learnt nothing.",
        [
            Claim("The literal form of the equations is better than the shipped default", stable),
            Claim(
                "Each of the default's choices makes the literal form's global model better",
                remedied,
                each=True,
            ),
            Claim("R can be taught by W0 + R + S what S has learnt, at no loss", taught, each=True),
        ],
        [
            ("Difference to the default", _differences(results, cells)),
            ("Absolute", overview_table(results, cells, GLOBAL | PERSONAL)),
        ],
        [_conflict(results, cells), front_figure(results, "ablations", unique_cells(cells))],
    )


def _conflict(results: Results, cells: Cells) -> Figure:
    """When the streams fall out, and which single change makes up for it."""
    names = ("fedsdr", "as the equations say", "literal, S reset", "literal, R alone 0.5", "S kept")
    shown_as = {
        "conflict/cosine": "cosine of the streams' weight updates",
        "norm/R": "norm of R's weight",
        "norm/S": "norm of S's weight",
    }
    caption = "The two streams round by round, means over clients; bands are 95 % intervals."
    return rounds_figure(results, "conflict", caption, {n: cells[n] for n in names}, shown_as)


def _differences(results: Results, cells: Cells) -> Table:
    own = cells["fedsdr"]
    rows = []
    for name, cell in cells.items():
        if not results.done(own, cell):
            continue
        moved = [format_estimate(results.difference(cell, own, m), sign=True) for m in COMPARED]
        shared = results.has(cell, "client_facts")  # there is a global model
        equal = results.at_equal_facts(cell, own) if shared else None
        kept = f"{format_estimate(equal[0], sign=True)} (at {equal[1]:.0f})" if equal else ""
        rows.append([name, *moved, kept, _cosine(results, cell)])
    names = [(GLOBAL | PERSONAL)[metric] for metric in COMPARED]
    return Table(["", *names, "general at equal facts", "cosine of S and R"], rows)


def _cosine(results: Results, cell: Cell) -> str:
    runs = [results.training(cell, seed, "conflict/cosine") for seed in results.done(cell)]
    means = [sum(run) / len(run) for run in runs if run]
    return format_estimate(t_interval(means), 3, sign=True) if means else ""
