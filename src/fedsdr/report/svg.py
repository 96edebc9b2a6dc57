"""From a matplotlib figure to an SVG that lives inside a page: themed, named, deterministic."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsdr.report.palette import INK, colour_placeholders

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedsdr",
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.scale_dashes": False,
    "axes.unicode_minus": True,
}
_POINTS_PER_INCH = 72  # of matplotlib's SVG: figure sizes below are in its user units


@contextmanager
def svg_settings() -> Iterator[None]:
    """Matplotlib's defaults with ours, whatever the user's own configuration says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def svg_canvas(width: float, height: float, margins: tuple[float, ...]) -> tuple[Figure, Axes]:
    """An empty figure; sizes and margins (left, right, bottom, top) in the SVG's units."""
    left, right, bottom, top = margins
    figure = Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH))
    axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - bottom - top) / height,
        )
    )
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def to_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as inline SVG; `name` must be unique on the page. Call within `svg_settings()`."""
    buffer = io.StringIO()
    blank = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=blank)
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    return Markup(
        '<svg class="plot" viewBox="{box}" role="img" aria-labelledby="{name}-title {name}-words">'
        '<title id="{name}-title">{title}</title><desc id="{name}-words">{words}</desc>'
        "{body}</svg>"
    ).format(
        box=box.group(1),
        name=name,
        title=title,
        words=description,
        body=Markup(_clean(body, str(escape(name)))),
    )


def _clean(body: str, name: str) -> str:
    """Remove metadata and styles, make ids unique on the page, leave colours and fonts to CSS."""
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)  # its "*" is the page's
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"\bfont: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for placeholder, css in colour_placeholders().items():
        body = body.replace(placeholder, css)
    return re.sub(r"\s*\n\s*", "\n", body)
