"""Statistics of a collection of responses: length, filler, repetition and vocabulary.

The Rewrite Paradox (arXiv 2605.18028) in numbers that need no model: unconstrained rewrites are
longer and hold about twice the filler.
"""

import re
from collections.abc import Sequence
from statistics import fmean
from typing import Final, NamedTuple

from fedsdr.core.errors import UserError
from fedsdr.distillation.checks import most_repeated

# Phrases that announce, join or close an answer and tell nothing of its subject. Matched as whole
# words wherever they stand, so that "make sure" and "overall health" count too: what is compared
# is the share before and after, not its height.
FILLERS: Final = (
    "sure", "certainly", "of course", "absolutely", "here is", "here are", "here's",
    "great question", "as an ai", "additionally", "furthermore", "moreover", "in addition",
    "it is important to note", "it's important to note", "it is worth noting",
    "it's worth noting", "note that", "overall", "in conclusion", "in summary", "to summarize",
    "i hope this helps", "let me know", "feel free", "happy to help",
)  # fmt: skip
REPETITIVE: Final = 0.2  # as the quality gate's check `repetition` has it


class TextStats(NamedTuple):
    """Means over a collection of responses.

    words: words between white space per response.
    filler: share of responses, 0 to 1, with a phrase of `FILLERS`.
    repetitive: share of responses, 0 to 1, of which one four-word sequence (occurring at least
        three times) makes up more than `REPETITIVE` of all.
    types: distinct words / words of the whole collection (type-token ratio). It falls as a
        collection grows: compare it at like lengths.
    """

    words: float
    filler: float
    repetitive: float
    types: float


def text_stats(texts: Sequence[str]) -> TextStats:
    """The statistics of a collection. Raises `UserError` for an empty one."""
    if not texts:
        raise UserError("texts = []: there is nothing to describe; give at least one response")
    tokens = [word for text in texts for word in split_words(text)]
    return TextStats(
        words=fmean(len(text.split()) for text in texts),
        filler=fmean(has_filler(text) for text in texts),
        repetitive=fmean(most_repeated(text) > REPETITIVE for text in texts),
        types=len(set(tokens)) / len(tokens) if tokens else 0.0,
    )


def split_words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return re.findall(r"\w+", text.lower())


def has_filler(text: str) -> bool:
    """Whether the text contains a phrase of `FILLERS`, ignoring case and spacing."""
    return bool(_FILLER.search(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")))


def _any_of(phrases: Sequence[str]) -> re.Pattern[str]:
    parts = (r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases)
    return re.compile(rf"\b(?:{'|'.join(parts)})\b", re.IGNORECASE)


_FILLER: Final = _any_of(FILLERS)
