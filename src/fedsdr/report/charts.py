"""Charts of the report: curves gathered into panels with a legend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from fedsdr.report import figures, labels, series, tables, text
from fedsdr.report.load import Material, MethodRuns
from fedsdr.report.palette import Style

Styles = Mapping[str, Style]
FACTS, KEPT = "client_facts", "general"
NOT_DRAWN = ("changed_facts", "base_style", "house_style")  # in the table of scores only


@dataclass(frozen=True)
class Panel:
    """One small figure, its caption, and the numbers behind it: a row a round, a column a head."""

    title: str
    unit: str
    better: str
    svg: Markup
    heads: tuple[str, ...]
    rows: list[tuple[int, list[str]]]
    methods: frozenset[str]
    seeds: int


@dataclass(frozen=True)
class ChartKey:
    """One entry of a legend."""

    label: str
    swatch: Markup
    own: bool


@dataclass(frozen=True)
class Chart:
    """Panels with one legend; seeds: of the method that has most; note: what is not drawn."""

    keys: tuple[ChartKey, ...]
    panels: tuple[Panel, ...]
    seeds: int
    note: str = ""


def facts_plane(material: Material, styles: Styles) -> Chart | None:
    """Facts learnt against knowledge kept; only the lab knows both."""
    found = [path for method in material.methods if (path := _path(method))]
    if not found:
        return None
    paths = _moving(found)
    title = "Facts learnt against general knowledge kept"
    axes = ("facts learnt, %", "general knowledge kept, %")
    svg = figures.plane_figure("plane", title, paths, styles, axes, material.own)
    methods = frozenset(path.method for path in paths)
    seeds = max(len(path.ends) for path in paths)
    chart = _chart(material, styles, [Panel(title, "%", "", svg, (), [], methods, seeds)])
    still = [labels.method_label(path.method).label for path in found if path not in paths]
    return replace(chart, note=_stays(still)) if chart and still else chart


def _moving(paths: list[figures.Path]) -> list[figures.Path]:
    """Those that leave the point where the others start; all of them where none moves."""
    moving = [path for path in paths if len(set(path.points)) > 1]
    starts = {path.points[0] for path in moving}
    return [path for path in paths if path in moving or path.points[0] not in starts]


def _stays(names: Sequence[str]) -> str:
    verbs = "stays at the start and has" if len(names) == 1 else "stay at the start and have"
    return f"{text.join_words(names)} {verbs} no line."


def _path(method: MethodRuns) -> figures.Path | None:
    facts, kept = (series.mean_curve(method, "eval", name) for name in (FACTS, KEPT))
    if facts is None or kept is None:
        return None
    x, y = (dict(zip(each.rounds, each.mean, strict=True)) for each in (facts, kept))
    points = tuple((x[index], y[index]) for index in sorted(x.keys() & y.keys()))
    last = max(x.keys() & y.keys(), default=0)
    ends = tuple(
        (row.eval[FACTS], row.eval[KEPT])
        for run in method.runs
        for row in run.rounds
        if row.index == last and FACTS in row.eval and KEPT in row.eval
    )
    return figures.Path(method.name, points, ends) if points else None


def metric_charts(material: Material, styles: Styles) -> Chart | None:
    """A panel a metric of the global model; those without a known meaning come last."""
    names = series.metric_names(
        material,
        "eval",
        lambda name: not labels.is_personal(name) and "/" not in name and name not in NOT_DRAWN,
    )
    base = next((method for method in material.methods if method.name == "base"), None)
    panels = []
    for index, name in enumerate(labels.ordered_names(names, labels.METRIC_LABELS)):
        metric = labels.metric_label(name)
        level = None
        if base and name in base.scores:
            level = figures.Level(base.scores[name].mean, styles["base"])
        panel = _panel(
            f"eval-{index}",
            metric.label,
            _lines(series.method_curves(material, "eval", name), styles),
            unit=metric.unit,
            level=level,
            digits=metric.digits,
        )
        methods = panel.methods | ({"base"} if level else set())
        better = metric.better and f"{metric.better} is better"
        panels.append(replace(panel, better=better, methods=methods))
    return _chart(material, styles, panels)


def loss_charts(material: Material, styles: Styles) -> Chart | None:
    """A panel a training loss."""
    names = series.metric_names(material, "train", lambda name: name.startswith("loss"))
    panels = [
        _panel(
            f"train-{index}",
            labels.loss_label(name),
            _lines(series.method_curves(material, "train", name), styles),
            unit="nats per token",
        )
        for index, name in enumerate(labels.ordered_names(names, labels.LOSSES))
    ]
    return _chart(material, styles, panels)


def conflict_chart(material: Material, styles: Styles) -> Chart | None:
    """Whether the two streams pull against each other."""
    panels = []
    cosine = _lines(series.method_curves(material, "train", "conflict/cosine"), styles)
    if cosine:
        title = "Cosine between the updates of R and S"
        panels.append(_panel("cosine", title, cosine, zero=True))
    norms = _norms(material, styles)
    if norms:
        panels.append(_panel("norms", "Norms of R (solid) and S (dashed)", norms, digits=2))
    return _chart(material, styles, panels)


def _norms(material: Material, styles: Styles) -> list[figures.Line]:
    """Both norms of the methods that have both: the norm of R alone says nothing of conflict.
    Streams differ in dash, methods in colour."""
    found = {stream: series.method_curves(material, "train", f"norm/{stream}") for stream in "RS"}
    both = {curve.method for curve in found["S"]}
    lines = []
    for stream, curves_of_stream in found.items():
        for curve in curves_of_stream:
            if curve.method in both:
                dash = (4.0, 2.0) if stream == "S" else ()
                style = replace(styles[curve.method], dash=dash, width=1.8)
                lines.append(figures.Line(curve, style, stream, hollow=stream == "S"))
    return lines


def _lines(found: Sequence[series.MeanCurve], styles: Styles) -> list[figures.Line]:
    return [figures.Line(curve, styles[curve.method]) for curve in found]


def _panel(
    name: str,
    title: str,
    lines: Sequence[figures.Line],
    *,
    unit: str = "",
    level: figures.Level | None = None,
    zero: bool = False,
    digits: int = 3,
) -> Panel:
    found = [line.curve for line in lines]
    heads = tuple(
        f"{labels.method_label(line.curve.method).short} {line.tag}".strip() for line in lines
    )
    return Panel(
        title,
        unit,
        "",
        figures.curve_panel(name, title, lines, unit=unit, level=level, zero=zero),
        heads,
        tables.curve_numbers(found, digits),
        frozenset(curve.method for curve in found),
        max((curve.n for curve in found), default=0),
    )


def _chart(material: Material, styles: Styles, panels: Sequence[Panel]) -> Chart | None:
    if not panels:
        return None
    shown: set[str] = set().union(*(panel.methods for panel in panels))
    keys = tuple(
        ChartKey(
            labels.method_label(each.name).label,
            styles[each.name].swatch,
            each.name == material.own,
        )
        for each in material.methods
        if each.name in shown
    )
    return Chart(keys, tuple(panels), max(panel.seeds for panel in panels))
