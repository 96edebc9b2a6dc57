"""Formatting of numbers, durations, sizes and lists for readers."""

from collections.abc import Callable, Mapping, Sequence

MINUS = "\N{MINUS SIGN}"
EN_DASH = "\N{EN DASH}"
THIN_SPACE = "\N{THIN SPACE}"


def format_fixed(value: float | None, digits: int = 1) -> str:
    """The value with so many decimals; a dash where there is none."""
    if value is None:
        return EN_DASH
    text = f"{value:,.{digits}f}"
    if not text.strip("-0.,"):  # no "-0.0"
        text = text.lstrip("-")
    return text.replace("-", MINUS).replace(",", THIN_SPACE)


def format_signed(value: float | None, digits: int = 1) -> str:
    """A difference: what is above zero has its sign too."""
    plus = "+" if value is not None and round(value, digits) > 0 else ""
    return plus + format_fixed(value, digits)


def format_span(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval with an en dash; "" where a bound is missing."""
    if low is None or high is None:
        return ""
    gap = " " if low < 0 or high < 0 else ""
    return f"{format_fixed(low, digits)}{gap}{EN_DASH}{gap}{format_fixed(high, digits)}"


def format_share(value: float | None) -> str:
    """A share, 0 to 1, in percent."""
    return EN_DASH if value is None else f"{format_fixed(100 * value)} %"


def format_duration(seconds: float) -> str:
    """Seconds as hours, minutes or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{format_fixed(seconds)} s" if seconds < 10 else f"{rest} s"


def format_size(count: float | None) -> str:
    """Bytes with a binary unit, three digits."""
    if count is None:
        return EN_DASH
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 999.5:  # else three digits would need an exponent
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} PiB"


def join_words(items: Sequence[str]) -> str:
    """a, b and c"""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def largest_counts(
    counts: Mapping[str, float], shown: int, written: Callable[[float], str] = str
) -> str:
    """The names with the largest counts, each with its own, and how many more there are."""
    order = sorted(counts, key=lambda name: (-counts[name], name))
    named = [f"{name} {written(counts[name])}" for name in order[:shown]]
    rest = len(order) - shown
    return ", ".join([*named, f"{rest} more"] if rest > 0 else named)
