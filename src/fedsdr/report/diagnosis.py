"""The page of a diagnosis: heat maps of clients, a map of responses, lengths, and the numbers.

A pure function of what `fedsdr.workflows.diagnose.run_diagnosis` returns; every figure has its data
as CSV.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup
from matplotlib.patches import Rectangle

from fedsdr.core import files
from fedsdr.report import palette, text
from fedsdr.report.html import template_environment
from fedsdr.report.palette import INK, PAPER, Style
from fedsdr.report.svg import svg_canvas, svg_settings, to_svg

DiagnosisData = Mapping[str, Any]
Rows = list[list[Any]]
HEAT_CELL: Final = 105.0  # at most; a figure is as wide as its column, and so are its letters
DIAGNOSIS_CATEGORIES: Final = 4  # of a client, in the table
NUMBERED: Final = 12  # clients on a heat map that has room for numbers
POSITIVE, NEGATIVE = (
    palette.method_styles(["fedsd"])["fedsd"],
    palette.method_styles(["fedavg"])["fedavg"],
)


def write_diagnosis(folder: Path, found: DiagnosisData) -> Path:
    """Write diagnosis.json, the figures' CSV files and diagnosis.html, readable by the owner
    alone: positions and counts are made from clients' texts."""
    files.write_json(folder / "diagnosis.json", found, private=True)
    for name, rows in figure_data(found).items():
        files.write_text(folder / f"{name}.csv", _csv(rows), private=True)
    page = folder / "diagnosis.html"
    files.write_text(page, render_diagnosis(found), private=True)
    return page


def render_diagnosis(found: DiagnosisData) -> str:
    """The page as HTML."""
    return (
        template_environment()
        .get_template("diagnosis.html.jinja")
        .render(
            found=found,
            heats=heat_maps(found),
            scatters=scatter_maps(found),
            lengths=length_chart(found),
            shown_categories=DIAGNOSIS_CATEGORIES,
            changes=change_rows(found),
            client_styles=client_styles([client["name"] for client in found["clients"]]),
            text=text,
            palette=palette,
        )
    )


MATRICES: Final = {
    "js": "Jensen-Shannon divergence, bits",
    "tfidf": "TF-IDF cosine",
    "gradients": "Cosine of gradients of R at the start",
}


def diagnosis_matrices(found: DiagnosisData) -> list[tuple[str, str, DiagnosisData]]:
    """(measure, side, matrix) of all that is there."""
    rows: list[tuple[str, str, DiagnosisData]] = []
    if "apart" in found:
        rows += [(name, "raw, all records", found["apart"][name]) for name in ("js", "tfidf")]
    if "gradients" in found:
        rows.append(("gradients", "raw", found["gradients"]["cosine"]))
    for side in ("raw", "rewritten") if "rewriting" in found else ():
        each, which = found["rewriting"], f"{side}, rewritten sample"
        rows += [(name, which, each[side][name]) for name in ("js", "tfidf")]
        if f"{side}_gradients" in each:
            rows.append(("gradients", which, each[f"{side}_gradients"]["cosine"]))
    return sorted(rows, key=lambda row: list(MATRICES).index(row[0]))


def heat_maps(found: DiagnosisData) -> list[tuple[str, Markup]]:
    """(caption, figure) of each matrix."""
    return [
        (f"{MATRICES[name]} ({side})", heat_map(f"heat-{index}", MATRICES[name], matrix))
        for index, (name, side, matrix) in enumerate(diagnosis_matrices(found))
    ]


def heat_map(name: str, title: str, matrix: DiagnosisData) -> Markup:
    """Client by client; the darker, the further from zero, in two colours for the two signs."""
    names, values = matrix["names"], matrix["matrix"]
    size = min(HEAT_CELL, 420 / len(names))
    side = size * len(names)
    with svg_settings():
        figure, axes = svg_canvas(side + 90, side + 30, margins=(84, 6, 24, 6))
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                style = POSITIVE if value >= 0 else NEGATIVE
                axes.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1,
                        color=style.placeholder, alpha=0.75 * min(1.0, abs(value)), linewidth=0,
                    )
                )  # fmt: skip
                if len(names) <= NUMBERED:
                    axes.text(column, row, text.format_fixed(value, 2), ha="center", va="center",
                              fontsize=9.5)  # fmt: skip
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False)
        axes.set_xticks(range(len(names)), [_short(each, size) for each in names])
        axes.set_yticks(range(len(names)), [each[:13] for each in names])
        words = "; ".join(
            f"{a} and {b}: {values[i][j]:.3f}"
            for i, a in enumerate(names) for j, b in enumerate(names) if i < j
        )  # fmt: skip
        return to_svg(figure, name, title, words)


def _short(name: str, size: float) -> str:
    """What fits below a cell: the end of a name, where numbers stand."""
    room = max(1, int(size / 6.2))
    return name if len(name) <= room else name[-room:] if name[-1].isdigit() else name[:room]


def scatter_maps(found: DiagnosisData) -> list[tuple[str, Markup]]:
    """A map a side, on the same axes."""
    points = found.get("map") or []
    names = [client["name"] for client in found["clients"]]
    shown = []
    for side in ("raw", "rewritten"):
        mine = [point for point in points if point["side"] == side]
        if mine:
            shown.append((f"Responses, {side}", _scatter(f"map-{side}", side, mine, points, names)))
    return shown


def _scatter(
    name: str,
    side: str,
    mine: Sequence[DiagnosisData],
    points: Sequence[DiagnosisData],
    names: Sequence[str],
) -> Markup:
    styles = client_styles(names)
    with svg_settings():
        figure, axes = svg_canvas(400, 330, margins=(8, 8, 8, 8))
        for client in names:
            places = [(p["x"], p["y"]) for p in mine if p["client"] == client]
            if places:
                x, y = zip(*places, strict=True)
                style = styles[client]
                axes.scatter(x, y, s=26, marker=style.marker, color=style.placeholder,
                             edgecolors=PAPER, linewidths=0.5)  # fmt: skip
        for axis, limits in (("x", axes.set_xlim), ("y", axes.set_ylim)):
            low, high = (f(p[axis] for p in points) for f in (min, max))
            margin = 0.05 * (high - low) or 1
            limits(low - margin, high + margin)
        axes.set_xticks([])
        axes.set_yticks([])
        return to_svg(figure, name, f"Map of {side} responses", f"{len(mine)} responses.")


def client_styles(names: Sequence[str]) -> dict[str, Style]:
    """One for each client, whatever it is called: a client may have the name of a method."""
    found = palette.method_styles(f"client {name}" for name in names)
    return {name: found[f"client {name}"] for name in names}


def length_chart(found: DiagnosisData) -> list[tuple[str, Markup]]:
    """Prompt and response tokens: from 5 to 95 %, with the middle half and the median."""
    return [
        (f"Tokens of a {kind}", _lengths(f"lengths-{kind}", found, f"{kind}_tokens"))
        for kind in ("prompt", "response")
    ]


def _lengths(name: str, found: DiagnosisData, key: str) -> Markup:
    clients = found["clients"]
    names = [client["name"] for client in clients]
    with svg_settings():
        height = 22.0 * len(clients)
        figure, axes = svg_canvas(400, height + 36, margins=(84, 14, 30, 6))
        for row, client in enumerate(clients):
            q5, q25, q50, q75, q95, _ = client[key]["quantiles"]
            colour = POSITIVE.placeholder
            axes.plot((q5, q95), (row, row), color=colour, linewidth=1.4)
            axes.plot((q25, q75), (row, row), color=colour, linewidth=7, alpha=0.55,
                      solid_capstyle="butt")  # fmt: skip
            axes.plot((q50,), (row,), color=INK, marker="o", markersize=5)
        axes.axvline(found["max_length"], color=NEGATIVE.placeholder, linewidth=1.2)
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xlim(0, None)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        axes.set_ylim(len(clients) - 0.5, -0.5)
        axes.set_yticks(range(len(clients)), [each[:13] for each in names])
        words = "; ".join(f"{c['name']}: median {c[key]['quantiles'][2]:.0f}" for c in clients)
        return to_svg(figure, name, key.replace("_", " "), words)


def change_rows(found: DiagnosisData) -> list[tuple[str, str, str, str]]:
    """(measure, raw, rewritten, difference with its interval) of the rewritten sample."""
    if "rewriting" not in found:
        return []
    each = found["rewriting"]
    raw, new = each["raw"], each["rewritten"]
    rows = [
        ("JS divergence, bits", raw["mean_js"], new["mean_js"], each["change"]["js"]),
        ("TF-IDF cosine", raw["mean_tfidf"], new["mean_tfidf"], each["change"]["tfidf"]),
    ]
    if "gradient_change" in each:
        sides = (each[f"{side}_gradients"]["mean"] for side in ("raw", "rewritten"))
        rows.append(("Cosine of gradients", *sides, each["gradient_change"]))
    full = [(name, _fixed(a), _fixed(b), interval_text(c, sign=True)) for name, a, b, c in rows]
    even = [
        (label, f"{raw[key]:.3f}", f"{new[key]:.3f}", text.format_signed(new[key] - raw[key], 3))
        for label, key in (
            ("JS at equal word counts", "even_js"),
            ("the same, assigned at random", "chance_js"),
            ("TF-IDF at equal word counts", "even_tfidf"),
            ("the same, assigned at random", "chance_tfidf"),
        )
    ]
    return [*full, *even]


def _fixed(interval: DiagnosisData) -> str:
    return text.format_fixed(interval["mean"], 3)


def interval_text(interval: DiagnosisData, sign: bool = False) -> str:
    """The mean with its 95 % interval, where there is one."""
    write = text.format_signed if sign else text.format_fixed
    span = text.format_span(interval["low"], interval["high"], 3)
    return write(interval["mean"], 3) + (f" ({span})" if span else "")


def figure_data(found: DiagnosisData) -> dict[str, Rows]:
    """What each figure shows, as tables with a header."""
    pairs: dict[str, Rows] = {}
    for name, side, matrix in diagnosis_matrices(found):
        rows = pairs.setdefault(name, [["side", "client", "other", "value"]])
        names = matrix["names"]
        rows += [
            [side, a, b, matrix["matrix"][i][j]]
            for i, a in enumerate(names)
            for j, b in enumerate(names)
        ]
    counts: Rows = [["client", "what", "total", *(f"q{q}" for q in found["quantiles"])]]
    for client in found["clients"]:
        for kind in ("prompt_tokens", "response_tokens"):
            each = client[kind]
            counts.append([client["name"], kind, each["total"], *each["quantiles"]])
    points: Rows = [["client", "side", "x", "y"]]
    points += [[p["client"], p["side"], p["x"], p["y"]] for p in found.get("map") or []]
    return {**pairs, "lengths": counts, **({"map": points} if len(points) > 1 else {})}


def _csv(rows: Rows) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
