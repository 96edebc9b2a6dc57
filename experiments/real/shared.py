"""Claims, tables and figures of both chapters on pretrained models."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes

from experiments.chapter import Draw, Figure, Table, format_estimate
from experiments.chapters.flattening import gradients_claim, text_claims
from experiments.chapters.shared import NUMBERS, estimate_cells, half_width
from experiments.plan import Cell, Cells
from experiments.real.results import RealResults
from fedsdr.core.statistics import t_interval
from fedsdr.evaluate.verdicts import Claim, Condition
from fedsdr.report.labels import method_label as label

# Measures of `experiments.paired`, in the order of `text_claims`, and what else a table shows.
DISTANCES: Final = {
    "js": "Jensen-Shannon divergence of clients, bits",
    "thinned js": "the same at equal word counts",
    "tfidf_cosine": "TF-IDF cosine of clients",
    "thinned tfidf_cosine": "the same at equal word counts",
}
STYLE: Final = {"words": "words of a response", "filler": "share with a filler phrase"}
MOMENTS: Final = {"gradients_first": "before round 1", "gradients_last": "after the last round"}


def rewriting_claims(results: RealResults, cells: Cells) -> list[Claim]:
    """What rewriting does to the clients' texts and gradients."""
    distances = [results.texts_difference(cells["fedsd"], measure) for measure in DISTANCES]
    cosines = [
        Condition(
            f"cosine of gradients {when}, rewritten - raw",
            results.difference(cells["fedsd"], cells["fedavg"], metric),
        )
        for metric, when in MOMENTS.items()
    ]
    return [*text_claims(*distances), gradients_claim(cosines)]


def rewriting_table(results: RealResults, cells: Cells) -> Table:
    """Clients' texts and gradients on raw responses and on rewrites."""
    fedavg, fedsd = cells["fedavg"], cells["fedsd"]
    rows = []
    for measure, called in (DISTANCES | STYLE).items():
        sides = results.texts(fedsd, measure)
        means = (format_estimate(t_interval(side), 3) if side else "" for side in sides)
        change = format_estimate(results.texts_difference(fedsd, measure), 3, sign=True)
        rows.append([called, *means, change])
    for metric, when in MOMENTS.items():
        means = (format_estimate(results.estimate(cell, metric), 3) for cell in (fedavg, fedsd))
        change = format_estimate(results.difference(fedsd, fedavg, metric), 3, sign=True)
        rows.append([f"cosine of clients' gradients {when}", *means, change])
    return Table(["", "raw", "rewritten", "difference"], rows)


def accepted_table(results: RealResults, cells: Cells) -> Table:
    """What became of the rewrites: of all records, and of what the checks accepted."""
    rows = []
    for name, cell in cells.items():
        if not cell.recipe(0).federation.rewrites or not results.done(cell):
            continue
        found = [
            _rewriting(results.distillation(cell, seed)["clients"]) for seed in results.done(cell)
        ]
        numbers = [
            format_estimate(t_interval(values)) if (values := _values(found, key)) else ""
            for key in found[0]
        ]
        rows.append([label(name).short, *numbers, str(len(found))])
    columns = ["accepted, %", "wrong among accepted, %", "inventing among accepted, %"]
    return Table(["", *columns, "words, raw", "words, target", "seeds"], rows)


def _values(found: Sequence[Mapping[str, float | None]], key: str) -> list[float]:
    return [value for each in found if (value := each[key]) is not None]


def _rewriting(clients: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """wrong: None where no accepted rewrite has a gold answer."""
    rows = clients.values()
    records, accepted, checked = (
        sum(row[key] for row in rows) for key in ("records", "rewritten", "checked")
    )
    wrong = sum((row["wrong"] or 0.0) * row["checked"] for row in rows)
    return {
        "accepted": 100 * accepted / records,
        "wrong": 100 * wrong / checked if checked else None,
        "inventing": 100 * sum(row["inventions"] for row in rows) / max(1, accepted),
        "raw": sum(row["raw_words"] * row["records"] for row in rows) / records,
        "words": sum(row["rewrite_words"] * row["records"] for row in rows) / records,
    }


def differences_table(
    results: RealResults, cells: Cells, to: str, metrics: Mapping[str, str], digits: int = 1
) -> Table:
    """Every method's difference to the method `to`, paired by seed."""
    rows = [
        [
            label(name).short,
            *(
                format_estimate(results.difference(cell, cells[to], metric), digits, sign=True)
                for metric in metrics
            ),
            str(len(results.done(cell, cells[to]))),
        ]
        for name, cell in cells.items()
        if name != to and results.done(cell, cells[to])
    ]
    return Table(["", *metrics.values(), "seeds"], rows)


def bars_figure(
    results: RealResults, name: str, caption: str, cells: Cells, metrics: Mapping[str, str]
) -> Figure:
    """A panel a metric, a bar a method with its 95 % interval, and the numbers as data."""
    found = {
        (method, metric): estimate
        for method, cell in cells.items()
        for metric in metrics
        if (estimate := results.estimate(cell, metric))
    }

    def panel(metric: str) -> Draw:
        def draw(axes: Axes) -> None:
            mine = [(label(m).short, e) for (m, each), e in found.items() if each == metric]
            means = [e["mean"] for _, e in mine]
            halves = [half_width(e) for _, e in mine]
            axes.barh(range(len(mine)), means, xerr=halves, color="tab:blue", alpha=0.7)
            axes.set_yticks(range(len(mine)), [method for method, _ in mine], fontsize=7)
            axes.invert_yaxis()
            axes.set_title(metrics[metric], loc="left", fontsize=10)

        return draw

    rows = [[method, metric, *estimate_cells(e)] for (method, metric), e in found.items()]
    data = Table(["method", "metric", *NUMBERS], rows)
    return Figure(name, caption, [panel(metric) for metric in metrics], data)


def ahead_of(results: RealResults, cells: Cells, a: str, b: str, metric: str) -> Condition:
    """That a method's metric is above another's."""
    found = results.difference(cells[a], cells[b], metric)
    return Condition(f"{metric}, {label(a).short} - {label(b).short}", found)


def finished_cells(results: RealResults, cells: Cells) -> list[Cell]:
    """Those of which some seed is complete."""
    return [cell for cell in cells.values() if results.done(cell)]
