"""Texts, tables and figures that several chapters share."""

from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes

from experiments.chapter import Draw, Figure, Table, format_estimate
from experiments.plan import Cell, Cells
from experiments.results import Results
from fedsdr.core import files
from fedsdr.core.layout import CLIENTS_FOLDER, REWRITES_FILE
from fedsdr.core.statistics import Estimate, t_interval
from fedsdr.data.records import ClientData
from fedsdr.lab.world import build_world
from fedsdr.report.labels import method_label as label
from fedsdr.workflows.prepare import world_options

GLOBAL: Final = {
    "client_facts": "client facts",
    "changed_facts": "changed facts",
    "general": "general",
    "hallucination": "hallucination",
    "length": "words",
    "response_loss": "response loss",
}
PERSONAL: Final = {
    "personal_client_facts": "personal client facts",
    "personal_general": "personal general",
}
UNBOUNDED: Final = ("length", "response_loss", "conflict/cosine", "norm/R", "norm/S")
NUMBERS: Final = ("mean", "low", "high", "seeds")
Texts = dict[str, list[str]]  # client -> its responses
Points = Mapping[tuple[str, str], Sequence[tuple[float, Estimate]]]  # (method, metric) -> (x, y)


def overview_table(
    results: Results, cells: Cells, metrics: Mapping[str, str], digits: int = 1
) -> Table:
    """A row a cell, a column a metric, and how many seeds each row has."""
    rows = [
        [
            name,
            *(format_estimate(results.estimate(cell, m), digits) for m in metrics),
            str(len(results.done(cell))),
        ]
        for name, cell in cells.items()
        if results.done(cell)
    ]
    return Table(["", *metrics.values(), "seeds"], rows)


def unique_cells(cells: Cells) -> Cells:
    """Cells of equal content under the first of their names."""
    names: dict[str, str] = {}
    for name, cell in cells.items():
        names.setdefault(cell.key, name)
    return {name: cells[name] for name in names.values()}


def at_equal_facts(results: Results, a: Cell, b: Cell) -> Estimate | None:
    """General knowledge that a keeps more than b where both know equally many client facts."""
    found = results.at_equal_facts(a, b)
    return found[0] if found else None


def sweep_figure(
    results: Results, name: str, axis: str, levels: Sequence[float],
    cells: Mapping[str, Sequence[Cell]], log: bool = False,
) -> Figure:  # fmt: skip
    """Facts, general knowledge and hallucination of methods over the levels of one option."""
    metrics = ("client_facts", "general", "hallucination")
    found = {
        (method, metric): [
            (x, e)
            for x, cell in zip(levels, row, strict=True)
            if (e := results.estimate(cell, metric))
        ]
        for method, row in cells.items()
        for metric in metrics
    }
    caption = f"Final global models over {axis}; bands are 95 % intervals, within 0 and 100."
    return line_figure(name, caption, axis, found, metrics, log)


def rounds_figure(
    results: Results, name: str, caption: str, cells: Cells, metrics: Mapping[str, str]
) -> Figure:
    """Training metrics round by round, with what each is called."""
    found = {}
    for method, cell in cells.items():
        for metric in metrics:
            runs = [results.training(cell, seed, metric) for seed in results.done(cell)]
            rounds = enumerate(zip(*runs, strict=True) if runs else (), 1)
            found[method, metric] = [(float(r), t_interval(values)) for r, values in rounds]
    return line_figure(name, caption, "round", found, list(metrics), titles=metrics)


def training_figure(results: Results, name: str, cells: Cells, metrics: Sequence[str]) -> Figure:
    """Global models round by round."""
    found = {}
    for method, cell in cells.items():
        runs = [[r for r in results.rounds(cell, s) if r.get("eval")] for s in results.done(cell)]
        for metric in metrics:
            found[method, metric] = [
                (float(rows[0]["round"]), t_interval([row["eval"][metric] for row in rows]))
                for rows in (zip(*runs, strict=True) if runs else ())
            ]
    caption = "Global models round by round; bands are 95 % intervals."
    return line_figure(name, caption, "round", found, metrics)


def line_figure(
    name: str,
    caption: str,
    axis: str,
    found: Points,
    metrics: Sequence[str],
    log: bool = False,
    titles: Mapping[str, str] = GLOBAL,
) -> Figure:
    """A panel a metric, a line a method, and the numbers as data."""

    def panel(metric: str) -> Draw:
        def draw(axes: Axes) -> None:
            for (method, each), points in found.items():
                if each == metric:
                    line_with_band(axes, label(method).short, points, metric not in UNBOUNDED)
            if log:
                levels = sorted({x for points in found.values() for x, _ in points})
                axes.set_xscale("log")
                axes.set_xticks(levels, [f"{x:g}" for x in levels])
                axes.minorticks_off()
            axes.set_xlabel(axis)
            axes.set_title(titles[metric], loc="left", fontsize=10)

        return draw

    rows = [
        [method, f"{x:g}", metric, *estimate_cells(e)]
        for (method, metric), points in found.items()
        for x, e in points
    ]
    data = Table(["method", axis, "metric", *NUMBERS], rows)
    return Figure(name, caption, [panel(metric) for metric in metrics], data)


def line_with_band(
    axes: Axes, name: str, points: Sequence[tuple[float, Estimate]], percent: bool = False
) -> None:
    """percent: what is drawn lies between 0 and 100, where intervals may not."""
    if not points:
        return
    xs = [x for x, _ in points]
    (line,) = axes.plot(xs, [e["mean"] for _, e in points], marker="o", markersize=3, label=name)
    lows = [e["mean"] if e["low"] is None else e["low"] for _, e in points]
    highs = [e["mean"] if e["high"] is None else e["high"] for _, e in points]
    if percent:
        lows, highs = [max(low, 0.0) for low in lows], [min(high, 100.0) for high in highs]
    axes.fill_between(xs, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)


def half_width(e: Estimate) -> float:
    """Of the 95 % interval; 0 where one seed gives none."""
    return 0.0 if e["high"] is None else e["high"] - e["mean"]


def estimate_cells(e: Estimate) -> list[str]:
    bounds = ("" if bound is None else f"{bound:.4g}" for bound in (e["low"], e["high"]))
    return [f"{e['mean']:.4g}", *bounds, str(e["n"])]


def front_figure(results: Results, name: str, cells: Cells) -> Figure:
    """General knowledge against client facts along training, means over seeds."""
    ways: dict[str, list[tuple[float, float]]] = {}
    for method, cell in cells.items():
        runs = [results.curve(cell, seed) for seed in results.done(cell)]
        if runs and results.has(cell, "client_facts"):
            ways[method] = [
                (mean_of(step, "client_facts"), mean_of(step, "general"))
                for step in zip(*runs, strict=True)
            ]

    def draw(axes: Axes) -> None:
        for method, points in ways.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=method)
        axes.set_xlabel("client facts, %")
        axes.set_title("general knowledge kept, %", loc="left", fontsize=10)

    rows = [
        [method, str(i), f"{x:.4g}", f"{y:.4g}"]
        for method, points in ways.items()
        for i, (x, y) in enumerate(points)
    ]
    data = Table(["method", "evaluation", "client_facts", "general"], rows)
    caption = (
        "Each global model's path from its first to its last evaluation; up and to the right is "
        "better."
    )
    return Figure(f"front-{name}", caption, [draw], data)


def mean_of(rows: Sequence[Mapping[str, float]], metric: str) -> float:
    return sum(row[metric] for row in rows) / len(rows)


def clients_of(cell: Cell, seed: int) -> list[ClientData]:
    """The clients and their records, straight from the world: nothing is encoded."""
    return build_world(world_options(cell.recipe(seed))).client_data()


def raw_texts(cell: Cell, seed: int) -> Texts:
    clients = clients_of(cell, seed)
    return {client.name: [record.response for record in client.train] for client in clients}


def rewritten_texts(results: Results, cell: Cell, seed: int) -> Texts:
    folders = sorted((results.folder(cell, seed) / CLIENTS_FOLDER).iterdir())
    return {
        folder.name: [row["text"] for row in files.read_json_lines(folder / REWRITES_FILE)]
        for folder in folders
    }
