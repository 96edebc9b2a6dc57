"""FedSDR's open choices, one changed at a time."""

from fedsdr.evaluate.intervals import estimate
from fedsdr.evidence import plan
from fedsdr.evidence.chapter import Chapter, Claim, Condition, Table, shown
from fedsdr.evidence.chapters.shared import GLOBAL, PERSONAL, front, overview
from fedsdr.evidence.plan import Cell, Cells
from fedsdr.evidence.results import Results

COMPARED = ("client_facts", "general", "hallucination", *PERSONAL)


def ablations(results: Results) -> Chapter:
    cells = plan.ablations()
    own, literal = cells["fedsdr"], cells["as the equations say"]
    stable = [
        Condition(f"{metric}, literal form - default", results.difference(literal, own, metric))
        for metric in ("general", "client_facts")
    ]
    return Chapter(
        "FedSDR's open choices",
        "Each row changes one choice of the shipped default. Differences are to the default, "
        "paired by seed; the cosine is that of the two streams' weight updates in a round, below "
        "zero where each undoes the other.",
        [Claim("The literal form of the equations is better than the shipped default", stable)],
        [
            ("Difference to the default", _differences(results, cells)),
            ("Absolute", overview(results, cells, GLOBAL | PERSONAL)),
        ],
        [front(results, "ablations", cells)],
    )


def _differences(results: Results, cells: Cells) -> Table:
    own = cells["fedsdr"]
    rows = []
    for name, cell in cells.items():
        if not results.done(own, cell):
            continue
        moved = [shown(results.difference(cell, own, m), sign=True) for m in COMPARED]
        equal = results.at_equal_facts(cell, own)
        kept = shown(equal[0], sign=True) if equal else ""
        rows.append([name, *moved, kept, _cosine(results, cell)])
    names = [(GLOBAL | PERSONAL)[metric] for metric in COMPARED]
    return Table(["", *names, "general at equal facts", "cosine of S and R"], rows)


def _cosine(results: Results, cell: Cell) -> str:
    runs = [results.training(cell, seed, "conflict/cosine") for seed in results.done(cell)]
    means = [sum(run) / len(run) for run in runs if run]
    return shown(estimate(means), 3, sign=True) if means else ""
