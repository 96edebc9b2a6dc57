"""The parts of the evidence document: claims with verdicts, tables, figures with their data."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure as Canvas

from fedsdr.core import files
from fedsdr.evaluate.intervals import Estimate

LEAST_SEEDS = 3  # with fewer, an interval is too uncertain itself to decide anything
MANY_NAMES = 6  # more do not fit among the lines
# Forty lines that can be told apart.
LINES = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=list(TABLEAU_COLORS.values()))
Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class Condition:
    """One condition of a claim: a difference that should be positive (or negative)."""

    what: str
    difference: Estimate | None
    positive: bool = True

    @property
    def verdict(self) -> str:
        """ "holds", "fails" (the opposite is shown) or "open" (the interval includes zero)."""
        d = self.difference
        if d is None or d["low"] is None or d["high"] is None or d["n"] < LEAST_SEEDS:
            return "open"
        if d["low"] <= 0 <= d["high"]:
            return "open"
        return "holds" if (d["low"] > 0) == self.positive else "fails"


@dataclass(frozen=True)
class Claim:
    """What the paper says, put as conditions.

    each: it is said of each of them ("every algorithm"), so that one that fails refutes it.
    """

    text: str
    tests: Sequence[Condition]
    each: bool = False

    @property
    def counts(self) -> str:
        """How its conditions came out: "4 hold, 1 fails, 2 open"."""
        found = Counter(test.verdict for test in self.tests)
        words = {"holds": ("holds", "hold"), "fails": ("fails", "fail"), "open": ("open", "open")}
        told = [f"{found[v]} {words[v][found[v] > 1]}" for v in words if found[v]]
        return ", ".join(told)

    @property
    def verdict(self) -> str:
        """Holds if all conditions do, in part if some do, fails if one is refuted and none holds,
        or all would have to."""
        found = [test.verdict for test in self.tests]
        if self.each and "fails" in found:
            return "fails"
        if found and all(each == "holds" for each in found):
            return "holds"
        if "holds" in found:
            return "holds in part"
        return "fails" if "fails" in found else "open"


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
        """NAME.svg and, beside it, NAME.csv."""
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


def shown(estimate: Estimate | None, digits: int = 1, sign: bool = False) -> str:
    """ "87.7 ± 0.9", half of a 95 % interval; the mean alone for one seed; "" for none."""
    if estimate is None:
        return ""
    mean = f"{estimate['mean']:{'+' if sign else ''}.{digits}f}"
    if estimate["high"] is None:
        return mean
    return f"{mean} ± {estimate['high'] - estimate['mean']:.{digits}f}"
