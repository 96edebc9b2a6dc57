"""The style of each method in all figures: colour, dash and marker, each distinctive by itself.

Colours follow Okabe and Ito's colour-blind-safe set, darkened for light paper and lightened for
dark. Figures are drawn in a placeholder for each slot, which becomes a CSS variable, so that
one SVG serves both.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from markupsafe import Markup

# The colour of text and axes, and of the page behind them, before CSS takes their place.
INK, PAPER = "#fe00f0", "#fe00f1"


@dataclass(frozen=True)
class Style:
    """slot: number of the CSS variable; dash: on and off lengths, empty for a solid line."""

    slot: int
    light: str
    dark: str
    marker: str
    dash: tuple[float, ...] = ()
    width: float = 1.6

    @property
    def placeholder(self) -> str:
        return f"#fd00{self.slot:02x}"

    @property
    def variable(self) -> str:
        return f"var(--c{self.slot})"

    @property
    def swatch(self) -> Markup:
        """A sample of line and marker for the legend."""
        dash = " ".join(map(str, self.dash))
        return Markup(
            '<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true" style="color:{}">'
            '<path d="M1 6H33" fill="none" stroke="currentColor" stroke-width="{}"'
            ' stroke-dasharray="{}"/><path d="{}" fill="currentColor"/></svg>'
        ).format(self.variable, self.width, dash, _OUTLINES[self.marker])


# Markers as matplotlib names them, and their outlines around (17, 6) for the legend.
_OUTLINES = {
    "": "",
    "o": "M13.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "s": "M13.8 2.8h6.4v6.4h-6.4z",
    "^": "M17 2l4 7.5h-8z",
    "v": "M17 10l4-7.5h-8z",
    "D": "M17 1.8l4.2 4.2-4.2 4.2-4.2-4.2z",
    "P": "M15.7 2h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
    "X": "M14.8 2l2.2 2.2 2.2-2.2 1.8 1.8-2.2 2.2 2.2 2.2-1.8 1.8-2.2-2.2-2.2 2.2-1.8-1.8"
    " 2.2-2.2-2.2-2.2z",
    "p": "M17 2l4.1 3-1.6 4.8h-5l-1.6-4.8z",
}

_KNOWN = {
    "base": Style(0, "#6b6f76", "#9aa0a8", "", (1.2, 2.4), 1.2),
    "fedavg": Style(1, "#c44e07", "#f0904f", "s", (6, 2)),
    "fedsd": Style(2, "#0069a8", "#62b4ec", "^", (2, 1.6)),
    "fedsd_verified": Style(3, "#007f5c", "#41c79b", "D", (7, 2, 1.5, 2)),
    "fedsdr": Style(4, "#a3267a", "#ef8ac3", "o", (), 2.4),
    "fedsdr2": Style(11, "#3d6b1f", "#9ccb6f", "X", (14, 2), 2.4),
    "local": Style(5, "#866900", "#dcb94e", "v", (4, 1.6, 1, 1.6, 1, 1.6)),
    "central": Style(6, "#2f3237", "#dcdee2", "P", (10, 3)),
}
_OTHERS = (
    Style(7, "#5546b5", "#ab9ff7", "X", (3, 3)),
    Style(8, "#7a4a2b", "#cf9e79", "p", (8, 2, 2, 2, 2, 2)),
    Style(9, "#20767d", "#76c9cf", "o", (1, 1)),
    Style(10, "#9c2f2f", "#f08d8d", "s", (12, 2)),
)


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """Known methods keep their style whatever else is shown; others take the spare ones in turn,
    with another marker and dash each time round."""
    names = list(methods)
    spare = [name for name in names if name not in _KNOWN]
    others = {name: _spare(index) for index, name in enumerate(spare)}
    return {name: _KNOWN.get(name) or others[name] for name in names}


def _spare(index: int) -> Style:
    """The style of the index-th method without a style of its own; forty of them are distinct."""
    times, place = divmod(index, len(_OTHERS))
    shapes = [style for style in (*_OTHERS, *_KNOWN.values()) if style.marker]
    shape = shapes[(place + times) % len(shapes)]
    return replace(_OTHERS[place], marker=shape.marker, dash=shape.dash or (5, 1))


def palette_css(theme: str) -> str:
    """The variables of all slots, for the "light" or the "dark" theme."""
    slots = [*_KNOWN.values(), *_OTHERS]
    pairs = ((style.slot, style.dark if theme == "dark" else style.light) for style in slots)
    return " ".join(f"--c{slot}: {colour};" for slot, colour in pairs)


def colour_placeholders() -> dict[str, str]:
    """Each placeholder colour and the CSS that takes its place."""
    slots = [*_KNOWN.values(), *_OTHERS]
    return {style.placeholder: style.variable for style in slots} | {
        INK: "currentColor",
        PAPER: "var(--paper)",
    }
