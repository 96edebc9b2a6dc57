"""The figures. Each is a pure function of curves, with a description in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedsdr.report import labels
from fedsdr.report.palette import INK, PAPER, Style
from fedsdr.report.series import MeanCurve
from fedsdr.report.svg import svg_canvas, svg_settings, to_svg

PANEL = (400.0, 230.0)
PLANE = (460.0, 350.0)
_MARKED = 12  # at most about this many markers on a line
_STEPS = [1, 2, 5, 10]  # what ticks may count in
_GAP = 14.0  # least distance of two labels, in the SVG's units
_FAR = 4 * _GAP  # how far a label may be from its point


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, such as the untrained base model."""

    value: float
    style: Style


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn; `tag` stands at its end."""

    curve: MeanCurve
    style: Style
    tag: str = ""
    hollow: bool = False


def curve_panel(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    level: Level | None = None,
    zero: bool = False,
) -> Markup:
    """Curves over rounds, with a band from the lowest to the highest seed."""
    with svg_settings():
        tagged = any(line.tag for line in lines)
        figure, axes = svg_canvas(*PANEL, margins=(34, 24 if tagged else 8, 32, 8))
        if level:
            _level(axes, level)
        if zero:
            axes.axhline(0, color=INK, alpha=0.55, linewidth=1)
        for line in lines:
            _draw(axes, line)
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=7, integer=True, steps=_STEPS, min_n_ticks=1)
        )
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=_STEPS))
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("round", loc="right", labelpad=2)
        if unit == "%":
            _within_percent(axes)
        _name_ends(axes, [_end(line) for line in lines if line.tag])
        return to_svg(figure, name, title, describe_figure([line.curve for line in lines], unit))


def _draw(axes: Axes, line: Line) -> None:
    curve, style = line.curve, line.style
    if curve.n > 1:
        axes.fill_between(
            curve.rounds, curve.low, curve.high, color=style.placeholder, alpha=0.14, linewidth=0
        )
    _plot(axes, line, curve.rounds, curve.mean)


def _plot(axes: Axes, line: Line, x: Sequence[float], y: Sequence[float]) -> None:
    style = line.style
    axes.plot(
        x,
        y,
        color=style.placeholder,
        linewidth=style.width,
        linestyle=(0, style.dash) if style.dash else "-",
        marker=style.marker,
        markersize=5,
        markevery=max(1, len(x) // _MARKED),
        markeredgecolor=style.placeholder if line.hollow else PAPER,
        markerfacecolor=PAPER if line.hollow else style.placeholder,
        markeredgewidth=1.1 if line.hollow else 0.6,
    )


def _level(axes: Axes, level: Level) -> None:
    style = level.style
    axes.axhline(
        level.value, color=style.placeholder, linewidth=style.width, linestyle=(0, style.dash)
    )


def _within_percent(axes: Axes) -> None:
    """Keep a margin around the data, but show no more than a sliver beyond 0 and 100."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -3), min(high, 103))


@dataclass(frozen=True)
class Path:
    """A method's way through the plane of two metrics; `ends` are its seeds' last points."""

    method: str
    points: tuple[tuple[float, float], ...]
    ends: tuple[tuple[float, float], ...]


def plane_figure(
    name: str,
    title: str,
    paths: Sequence[Path],
    styles: Mapping[str, Style],
    axis_names: tuple[str, str],
    own: str,
) -> Markup:
    """Two metrics against each other over the rounds, a line a method, up and right better."""
    with svg_settings():
        figure, axes = svg_canvas(*PLANE, margins=(34, 8, 36, 26))
        for path in paths:
            style = styles[path.method]
            x, y = zip(*path.points, strict=True)
            _plot(axes, Line(_NO_CURVE, style), x, y)
            if len(path.ends) > 1:
                x, y = zip(*path.ends, strict=True)
                axes.scatter(x, y, s=9, color=style.placeholder, alpha=0.45)
            axes.plot(
                *path.points[-1],
                color=style.placeholder,
                marker=style.marker or "o",
                markersize=9,
                markeredgecolor=PAPER,
            )
        axes.set_xlabel(axis_names[0], loc="right")
        axes.set_title(axis_names[1], loc="left", fontsize=10.5)
        _within_percent(axes)
        _make_room(axes)
        _mark_start(axes, paths)
        _name_ends(axes, [_end_of_path(path, styles, path.method == own) for path in paths])
        return to_svg(figure, name, title, _describe_paths(paths))


_NO_CURVE = MeanCurve("", (), (), (), (), 0)


def _mark_start(axes: Axes, paths: Sequence[Path]) -> None:
    """Name the point from which all lines start, where there is one."""
    starts = {path.points[0] for path in paths if len(path.points) > 1}
    if len(starts) == 1:
        (start,) = starts
        axes.plot(*start, color=INK, marker="o", markersize=6, markeredgecolor=PAPER)
        axes.annotate("start", start, (0, 8), textcoords="offset points", ha="center")


def _make_room(axes: Axes) -> None:
    """Space on the right for the names of the rightmost ends, and above for that of the start.
    Both axes are percentages."""
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    axes.set_xlim(left, right + (right - left) * 0.22)
    axes.set_ylim(low, high + (high - low) * 0.05)
    for axis, least in ((axes.xaxis, left), (axes.yaxis, low)):  # no tick at 110 %
        axis.set_ticks([tick for tick in axis.get_ticklocs() if least <= tick <= 100])


@dataclass(frozen=True)
class End:
    """A name to write next to the end of a line."""

    at: tuple[float, float]
    name: str
    style: Style
    strong: bool = False


def _end(line: Line) -> End:
    return End((line.curve.rounds[-1], line.curve.mean[-1]), line.tag, line.style)


def _end_of_path(path: Path, styles: Mapping[str, Style], own: bool) -> End:
    return End(path.points[-1], labels.method_label(path.method).short, styles[path.method], own)


def _name_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write the names, moved apart where they would touch; the axes' limits must stand. Names that
    would have to move far from their points are left to the legend."""
    if not ends:
        return
    assert axes.figure is not None
    scale = 72 / axes.figure.dpi  # from pixels to the SVG's units
    places = [(x * scale, y * scale) for x, y in axes.transData.transform([e.at for e in ends])]
    for end, (_, y), height in zip(ends, places, label_heights(places), strict=True):
        if height - y > _FAR:
            continue
        axes.annotate(
            end.name,
            end.at,
            (9, height - y),
            textcoords="offset points",
            va="center",
            fontweight="bold" if end.strong else "normal",
            color=end.style.placeholder,
            annotation_clip=False,
        )


def label_heights(points: Sequence[tuple[float, float]], reach: float = 110.0) -> list[float]:
    """Heights for labels at the points: from the lowest up, each at least a gap above those
    that lie less than `reach` to its side."""
    order = sorted(range(len(points)), key=lambda index: points[index][1])
    heights = [y for _, y in points]
    for place, index in enumerate(order):
        for other in sorted(order[:place], key=lambda each: heights[each]):
            near = abs(points[index][0] - points[other][0]) < reach
            if near and abs(heights[index] - heights[other]) < _GAP:
                heights[index] = heights[other] + _GAP
    return heights


def describe_figure(found: Sequence[MeanCurve], unit: str) -> str:
    """The figure in words: where each curve starts and ends."""
    mark = "%" if unit == "%" else (f" {unit}" if unit else "")
    sentences = []
    for curve in found:
        start = f"from {curve.mean[0]:.4g}{mark} at round {curve.rounds[0]} "
        end = f"to {curve.mean[-1]:.4g}{mark} at round {curve.rounds[-1]}"
        sentences.append(f"{labels.method_label(curve.method).label}: {start}{end}.")
    return " ".join(sentences)


def _describe_paths(paths: Sequence[Path]) -> str:
    rows = (
        (labels.method_label(path.method).label, path.points[0], path.points[-1]) for path in paths
    )
    return " ".join(
        f"{label}: from ({start[0]:.1f}, {start[1]:.1f}) to ({end[0]:.1f}, {end[1]:.1f})."
        for label, start, end in rows
    )
