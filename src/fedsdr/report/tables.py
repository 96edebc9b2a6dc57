"""The tables of scores, traffic and data, as rows of texts for the template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsdr.report import labels, series, text
from fedsdr.report.load import Material, ScoreEstimate
from fedsdr.report.palette import Style

SHOWN_CATEGORIES = 4


@dataclass(frozen=True)
class TableCell:
    text: str
    span: str = ""
    best: bool = False
    n: str = ""


@dataclass(frozen=True)
class TableRow:
    label: str
    style: Style | None
    own: bool
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class Table:
    columns: tuple[labels.Metric, ...]
    rows: tuple[TableRow, ...]
    note: str = ""


def score_table(material: Material, names: Sequence[str], styles: Mapping[str, Style]) -> Table:
    """Methods by metrics; a method with none of them has no row."""
    winners = {name: best_methods(material, name) for name in names}
    shown = [method for method in material.methods if any(name in method.scores for name in names)]
    counts = {method.scores[n].n for method in shown for n in names if n in method.scores}
    rows = tuple(
        TableRow(
            labels.method_label(method.name).label,
            styles[method.name],
            method.name == material.own,
            tuple(
                _cell(method.scores.get(name), name, method.name in winners[name], len(counts) > 1)
                for name in names
            ),
        )
        for method in shown
    )
    return Table(tuple(labels.metric_label(name) for name in names), rows, _how_many(counts))


def _how_many(counts: set[int]) -> str:
    if not counts:
        return ""
    if counts == {1}:
        return "One seed (n = 1), so no interval: differences may be chance."
    if len(counts) == 1:
        return f"Mean over n = {counts.pop()} seeds; below it the 95 % interval."
    return "Mean over n seeds; below it the 95 % interval."


def _cell(score: ScoreEstimate | None, name: str, wins: bool, with_n: bool) -> TableCell:
    if score is None:
        return TableCell(text.EN_DASH)
    digits = labels.metric_label(name).digits
    return TableCell(
        text.format_fixed(score.mean, digits),
        text.format_span(score.low, score.high, digits),
        wins,
        f"n = {score.n}" if with_n else "",
    )


def best_methods(material: Material, name: str) -> set[str]:
    """The trained methods with the best mean, as far as shown digits tell; empty where the metric
    has no direction or there is nothing to compare."""
    metric = labels.metric_label(name)
    means = {
        method.name: round(method.scores[name].mean, metric.digits)
        for method in material.methods
        if name in method.scores and method.name != "base"
    }
    if not metric.better or len(means) < 2:
        return set()
    top = max(means.values()) if metric.better == "higher" else min(means.values())
    winners = {method for method, mean in means.items() if mean == top}
    return winners if len(winners) < len(means) else set()


def curve_numbers(curves: Sequence[series.MeanCurve], digits: int) -> list[tuple[int, list[str]]]:
    """The means of several curves, a row a round: what the figure shows, to be read exactly."""
    lookup = [dict(zip(curve.rounds, curve.mean, strict=True)) for curve in curves]
    rounds = sorted({index for row in lookup for index in row})
    return [
        (index, [text.format_fixed(row.get(index), digits) for row in lookup]) for index in rounds
    ]


def traffic_table(material: Material, styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    """What all clients together send and get; methods that sent nothing measurable are left out."""
    rows = []
    for method in material.methods:
        up, down = (series.mean_of(method, f"bytes_{way}") for way in ("up", "down"))
        if up is None and down is None:
            continue
        total = sum(series.total_of(method, f"bytes_{way}") or 0.0 for way in ("up", "down"))
        seconds = series.mean_of(method, "seconds")
        rows.append(
            {
                "label": labels.method_label(method.name).label,
                "style": styles[method.name],
                "own": method.name == material.own,
                "amount": total,
                "up": text.format_size(up),
                "down": text.format_size(down),
                "total": text.format_size(total),
                "seconds": text.EN_DASH if seconds is None else f"{text.format_fixed(seconds)} s",
            }
        )
    return _with_widths(rows)


def aggregation_table(material: Material, styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    """How far each method's deployed model is from the ideal mean of its clients' products."""
    rows = []
    for method in material.methods:
        lost = series.mean_of(method, "aggregation/lost")
        if lost is None:
            continue
        rows.append(
            {
                "label": labels.method_label(method.name).label,
                "style": styles[method.name],
                "own": method.name == material.own,
                "amount": lost,
                "lost": f"{text.format_fixed(100 * lost)} %",
                "error": text.format_fixed(series.mean_of(method, "aggregation/error"), 3),
            }
        )
    return _with_widths(rows)


def partition_table(partition: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Who holds which data."""
    rows = [
        {
            "name": str(client.get("name", "")),
            "amount": float(client.get("records") or 0),
            "records": text.format_fixed(client.get("records"), 0),
            "held_out": text.format_fixed(client.get("held_out"), 0),
            "prompt": text.format_fixed(client.get("mean_prompt_words")),
            "response": text.format_fixed(client.get("mean_response_words")),
            "categories": _categories(client.get("categories") or {}),
        }
        for client in partition
    ]
    return _with_widths(rows)


def _with_widths(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds the length of each row's bar: its percentage of the largest amount."""
    top = max((row["amount"] for row in rows), default=0) or 1
    return [row | {"width": round(100 * row["amount"] / top, 1)} for row in rows]


def _categories(counts: Mapping[str, Any]) -> str:
    """The largest categories with their shares."""
    named = {name or "none": float(count) for name, count in counts.items()}
    total = sum(named.values()) or 1
    return text.largest_counts(
        named, SHOWN_CATEGORIES, lambda count: f"{100 * count / total:.0f} %"
    )
