"""The Pareto front: client facts against general knowledge, and what no other method beats."""

from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes

from experiments import plan
from experiments.chapter import Chapter, Draw, Figure, Table, format_estimate
from experiments.chapters.shared import mean_of, unique_cells
from experiments.plan import Cells
from experiments.results import Results
from fedsdr.core.statistics import non_dominated

SIDES: Final = {
    "global models": ("client_facts", "general"),
    "personal models": ("personal_client_facts", "personal_general"),
}
Points = Mapping[str, tuple[float, float]]  # what it is called -> (client facts, general knowledge)


def pareto_chapter(results: Results) -> Chapter:
    cells = unique_cells(plan.rivals_cells() | plan.ablations_cells())
    return Chapter(
        "The Pareto front",
        "A point is on the front if no other method knows at least as many client facts and keeps "
        "at least as much general knowledge, and more of one; by means over seeds, so neighbours "
        "on the front may differ by chance. First at equal rounds, all methods and variants; the "
        "same for those that can be had without gold answers, by which rewrites are verified; then "
        "along training, where a method is on the front if one of its evaluations is.",
        tables=[
            ("On the front after ten rounds", _fronts(results, cells)),
            ("On the front of those that need no gold answers", _fronts(results, _free(cells))),
            ("Along training", _stages(results)),
        ],
        figures=[
            _finals(results, cells),
            _ways(results, cells, "pareto-training", "every method and variant"),
            _ways(results, _free(cells), "pareto-training-free", "those without gold answers"),
        ],
    )


def _free(cells: Cells) -> Cells:
    """Cells that check no rewrite against a gold answer."""
    return {n: c for n, c in cells.items() if "answer" not in c.recipe(0).distill.checks}


def _points(results: Results, cells: Cells, metrics: tuple[str, str]) -> Points:
    found = {}
    for name, cell in cells.items():
        x, y = (results.estimate(cell, metric) for metric in metrics)
        if x and y:
            found[name] = (x["mean"], y["mean"])
    return found


def _front(points: Points) -> list[str]:
    """The names of the points on the front, by rising client facts."""
    marked = zip(points, non_dominated([*points.values()]), strict=True)
    return sorted((name for name, on in marked if on), key=lambda name: points[name])


def _fronts(results: Results, cells: Cells) -> Table:
    rows = []
    for side, metrics in SIDES.items():
        for name in _front(_points(results, cells, metrics)):
            estimates = (results.estimate(cells[name], metric) for metric in metrics)
            seeds = str(len(results.done(cells[name])))
            rows.append([side, name, *map(format_estimate, estimates), seeds])
    return Table(["", "method", "client facts", "general", "seeds"], rows)


def _stages(results: Results) -> Table:
    """Global and personal models of the same methods after 2, 5 and 10 rounds."""
    rows = []
    metrics = [metric for pair in SIDES.values() for metric in pair]
    for name, cell in plan.pareto_cells().items():
        if results.done(cell):
            values = (format_estimate(results.estimate(cell, metric)) for metric in metrics)
            rows.append([name, *values, str(len(results.done(cell)))])
    columns = ["client facts", "general", "personal client facts", "personal general"]
    return Table(["method, rounds", *columns, "seeds"], rows)


def _finals(results: Results, cells: Cells) -> Figure:
    rows: list[list[str]] = []
    panels: list[Draw] = []
    for side, metrics in SIDES.items():
        points = _points(results, cells, metrics)
        front = _front(points)
        rows += [
            [side, name, f"{x:.4g}", f"{y:.4g}", str(name in front).lower()]
            for name, (x, y) in points.items()
        ]
        panels.append(_scatter(side, points, front))
    data = Table(["side", "method", "client_facts", "general", "on_front"], rows)
    caption = "All methods and variants after ten rounds; those on the front are named."
    return Figure("pareto", caption, panels, data)


def _scatter(side: str, points: Points, front: Sequence[str]) -> Draw:
    def draw(axes: Axes) -> None:
        others = [point for name, point in points.items() if name not in front]
        if others:
            xs, ys = zip(*others, strict=True)
            axes.scatter(xs, ys, s=12, color="0.65")
        if front:
            line = zip(*(points[name] for name in front), strict=True)
            axes.plot(*line, color="0.4", linewidth=0.8)
        for name in front:
            axes.plot(*points[name], marker="o", linestyle="none", label=name)
        _name_axes(axes, side)

    return draw


def _ways(results: Results, cells: Cells, called: str, whose: str) -> Figure:
    """Every evaluation of every global model; the front of all of them together."""
    steps: dict[str, tuple[float, float]] = {}
    for name, cell in cells.items():
        runs = [results.curve(cell, seed) for seed in results.done(cell)]
        for i, step in enumerate(zip(*runs, strict=True) if runs else ()):
            if all("client_facts" in row for row in step):
                steps[f"{name}|{i}"] = mean_of(step, "client_facts"), mean_of(step, "general")
    front = _front(steps)
    named = list(dict.fromkeys(point.rpartition("|")[0] for point in front))
    rows = [
        [*point.rsplit("|", 1), f"{x:.4g}", f"{y:.4g}", str(point in front).lower()]
        for point, (x, y) in steps.items()
    ]

    def draw(axes: Axes) -> None:
        if steps:
            xs, ys = zip(*steps.values(), strict=True)
            axes.scatter(xs, ys, s=5, color="0.75")
        for name in named:
            mine = [steps[point] for point in front if point.rpartition("|")[0] == name]
            xs, ys = zip(*mine, strict=True)
            axes.plot(xs, ys, marker="o", linestyle="none", label=name)
        _name_axes(axes, "global models along training")

    data = Table(["method", "evaluation", "client_facts", "general", "on_front"], rows)
    caption = f"Every evaluation of the global models of {whose}; those on the front are named."
    return Figure(called, caption, [draw], data)


def _name_axes(axes: Axes, title: str) -> None:
    axes.set_xlabel("client facts, %")
    axes.set_ylabel("general knowledge, %")
    axes.set_title(title, loc="left", fontsize=10)
