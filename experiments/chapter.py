"""The parts of the evidence document: claims with verdicts, tables, figures with their data."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure as Canvas

from fedsdr.core import files
from fedsdr.core.statistics import Estimate
from fedsdr.evaluate.verdicts import Claim

MANY_NAMES = 6  # more do not fit among the lines
# Forty distinguishable lines.
LINES = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=list(TABLEAU_COLORS.values()))
Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [list(self.columns), ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


@dataclass(frozen=True)
class Figure:
    """name: of its files. panels: one drawing for each pair of axes. data: what they show."""

    name: str
    caption: str
    panels: Sequence[Draw]
    data: Table

    def write(self, folder: Path) -> None:
        """Write NAME.svg and NAME.csv."""
        canvas = Canvas(figsize=(5.2 * len(self.panels), 3.8), layout="constrained")
        FigureCanvasAgg(canvas)
        longest = 0
        for draw, axes in zip(
            self.panels, canvas.subplots(1, len(self.panels), squeeze=False)[0], strict=True
        ):
            axes.set_prop_cycle(LINES)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            draw(axes)
            names = axes.get_legend_handles_labels()[1]
            if len(names) > MANY_NAMES:
                under = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
                axes.legend(fontsize=6, **under)
                longest = max(longest, len(names))
            elif names:
                axes.legend(fontsize=7)
        canvas.set_figheight(3.8 + 0.075 * longest)  # two names side by side below the axes
        image = io.BytesIO()
        canvas.savefig(image, format="svg", metadata={"Date": None})
        files.write_text(folder / f"{self.name}.svg", image.getvalue().decode())
        files.write_text(folder / f"{self.name}.csv", self.data.csv())


@dataclass(frozen=True)
class Chapter:
    title: str
    how: str
    claims: Sequence[Claim] = ()
    tables: Sequence[tuple[str, Table]] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = field(default=())


def format_estimate(estimate: Estimate | None, digits: int = 1, sign: bool = False) -> str:
    """ "87.7 ± 0.9", half of a 95 % interval; the mean alone for one seed; "" for none."""
    if estimate is None:
        return ""
    mean = f"{estimate['mean']:{'+' if sign else ''}.{digits}f}"
    if estimate["high"] is None:
        return mean
    return f"{mean} ± {estimate['high'] - estimate['mean']:.{digits}f}"
