"""Numbers in running text, and which of them a text states as its answer."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from fedsdr.data.records import ANSWER_MARK

# A minus that follows a word or a bracket is a hyphen (3-5 days, May-2024). A comma or space before
# three digits groups thousands; one before one or two digits is decimal, but not within a list.
NUMBER_PATTERN: Final = re.compile(
    r"""
    (?P<date>(?<![\w-])\d{4}-\d{1,2}-\d{1,2}(?![\w-]))
    | (?P<sign>(?<![\w)\]}.])[-\u2212])?
    [$€£¥]?
    (?<!\w)(?<!\d\.)
    (?:
        (?<!/)(?P<fraction>\d+/\d+)(?![\d/])
      | (?P<grouped>\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d))(?P<tail>\.\d+)?
      | (?<!\d,)(?P<comma>\d+,\d{1,2})(?!\d|,\d)
      | (?P<plain>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)
    )
    """,
    re.VERBOSE,
)
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS: Final = {
    **{word: value for value, word in enumerate(_UNITS)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
    **{
        f"{ten}-{_UNITS[unit]}": 10 * value + unit
        for value, ten in enumerate(_TENS, start=2)
        for unit in range(1, 10)
    },
    "dozen": 12,
    "hundred": 100,
    "thousand": 1000,
    "million": 1_000_000,
}

# What holds numbers that are not the answer: what stands in brackets, the number of a step, what
# is denied, a check of the result, and rates (7 days a week).
_TIME = r"(?:second|minute|hour|day|week|month|year)"
_ASIDES: Final = [
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"(?<!\\)\([^()]*\)",
        r"\b(?:steps?|questions?|parts?|equations?|lines?|pages?|chapters?|tables?)\s*#?\d+",
        r"\b(?:not|n['\u2019]t|never|rather than|instead of)\s+(?:\w+\s+)?[-\u2212$€£¥]*\d[\d.,]*",
        r"\b(?:check|checking|verify|verifying|verification|proof)\s*:.*",
        rf"\b\d+\s+{_TIME}s?\s+(?:a|an|per|each|every|in\s+an?)\s+{_TIME}\b",
    )
]
_STATEMENT: Final = re.compile(r"\banswers?\b[^.\n]{0,60}?(?:\bis\b|\bare\b|[:=])", re.IGNORECASE)
_BOXED: Final = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_SENTENCE_END: Final = re.compile(r"[.!?](?:\s|$)|\n")


class Number(NamedTuple):
    """A number's value, its sign included, and where it stands in its text."""

    value: float
    start: int
    end: int


def numbers_in(text: str) -> Iterator[Number]:
    """The numbers written in digits, in order. Those within words (B12) and dates are none."""
    for match in NUMBER_PATTERN.finditer(text):
        if (value := _value(match)) is not None:
            yield Number(-value if match["sign"] else value, *match.span())


def _value(match: re.Match[str]) -> float | None:
    if match["date"]:
        return None
    if match["fraction"]:
        above, below = map(int, match["fraction"].split("/"))
        return above / below if below else None
    if match["grouped"]:
        return float(re.sub(r"\D", "", match["grouped"]) + (match["tail"] or ""))
    return float((match["comma"] or match["plain"]).replace(",", "."))


def worded_numbers(text: str) -> list[float]:
    """The numbers that are spelt out in English, in order: "twenty-one" is 21, "dozen" 12."""
    words = re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower())
    return [float(NUMBER_WORDS[word]) for word in words if word in NUMBER_WORDS]


def final_number(text: str) -> float | None:
    """The number that a text states as its result; None where it has no number.

    The first after the last `####`; else the last of what is boxed, of the sentence that says what
    the answer is, or of the text without its asides; else the last one at all, in digits or words.
    """
    _, mark, rest = text.rpartition(ANSWER_MARK)
    if mark:
        return next((number.value for number in numbers_in(rest)), None)
    boxed = _BOXED.findall(text)
    plain = text
    for aside in _ASIDES:
        plain = aside.sub(" ", plain)
    for part in (boxed[-1] if boxed else "", _answer_sentence(plain), plain, text):
        if found := [number.value for number in numbers_in(part)]:
            return found[-1]
    return next(reversed(worded_numbers(text)), None)


def _answer_sentence(text: str) -> str:
    """What follows the last "answer is" within its sentence; "" where there is none."""
    found = list(_STATEMENT.finditer(text))
    return _SENTENCE_END.split(text[found[-1].end() :].lstrip(), maxsplit=1)[0] if found else ""
