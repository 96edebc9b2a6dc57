"""The quality gate: small functions (record, rewrite) -> the reason to refuse it, or None.

SDFT (Yang et al., ACL 2024, arXiv 2402.13669) keeps the raw response whenever the rewrite is
degenerate or gets a checkable answer wrong. These are the conditions by which a text is
degenerate; those by which it is wrong are in `fedsdr.distillation.answers`. Checks that need more
than the two texts (a model, the client's other records, a seed) are judges of whole batches, in
files of their own; `fedsdr.distillation.verify` puts all of them together.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fedsdr.data.records import Record
from fedsdr.data.thinking import MARK_NAMES
from fedsdr.distillation.phrases import INVENTED_TURNS, META_TALK, new_phrase


class Rewrite(NamedTuple):
    """A generated response; `finished` says that the model ended its turn within the limit."""

    text: str
    finished: bool


class Candidate(NamedTuple):
    """A rewrite before the gate; attempt counts from 0."""

    record: Record
    rewrite: Rewrite
    attempt: int = 0


@dataclass(frozen=True)
class Verdict:
    """reason: why the rewrite is refused, "" where it passes. measured: what was compared with
    a threshold, by name, 0 to 1, higher is better."""

    reason: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)


Check = Callable[[Record, Rewrite], str | None]
RewriteCheck = Callable[[Sequence[Candidate]], Sequence[Verdict]]  # a verdict for each, in order

_THOUGHT: Final = re.compile(
    "|".join([*map(re.escape, MARK_NAMES), "</?(?:thinking|reasoning)>"]), re.IGNORECASE
)
_CIRCLE: Final = re.compile(r"(\S(?:.{0,39}?\S)??)(?:\s*\1){4,}", re.DOTALL)
_SENTENCE: Final = re.compile(r"[^.!?\u3002\uff01\uff1f\n]+")


def check_empty(record: Record, rewrite: Rewrite) -> str | None:
    """A rewrite must have a letter or a digit, and a letter where the raw response has one, unless
    all of it stands in the raw response (the bare number of a sentence)."""
    text, raw = rewrite.text.strip(), record.response
    if not any(map(str.isalnum, text)):
        return "empty"
    wordless = any(map(str.isalpha, raw)) and not any(map(str.isalpha, text))
    return "empty" if wordless and text.rstrip(".") not in raw else None


def check_truncated(record: Record, rewrite: Rewrite) -> str | None:
    """A rewrite must end within its token limit."""
    return None if rewrite.finished else "truncated"


def check_repetition(record: Record, rewrite: Rewrite) -> str | None:
    """A text that goes in circles, by words, by characters or by sentences, more than the raw
    response does (poems and lists may repeat)."""
    text, raw = rewrite.text, record.response
    circles = (
        most_repeated(text) > max(0.2, most_repeated(raw))
        or circling_share(text) > max(0.2, circling_share(raw))
        or repeated_share(text) > max(0.2, repeated_share(raw))
    )
    return "repetition" if circles else None


def most_repeated(text: str, n: int = 4) -> float:
    """Share that the commonest n-word sequence has of all, 0 where none occurs three times."""
    words = text.split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    commonest = max(grams.values(), default=0)
    return commonest / grams.total() if commonest >= 3 else 0.0


def circling_share(text: str) -> float:
    """Share of the characters in runs where up to 40 characters with a letter are written five or
    more times without a break: for text without spaces, and for single words."""
    runs = (run for run in _CIRCLE.finditer(text) if any(map(str.isalpha, run.group(1))))
    return sum(len(run.group()) for run in runs) / max(1, len(text))


def repeated_share(text: str) -> float:
    """Share of the words that are in sentences of four or more which have been written before;
    of a text without spaces, of the characters in sentences of twelve or more."""
    sentences = [re.findall(r"\w+", sentence.casefold()) for sentence in _SENTENCE.findall(text)]
    units = ["".join(words) if len(words) == 1 else words for words in sentences]
    counts = Counter(
        tuple(unit) for unit in units if len(unit) >= (12 if isinstance(unit, str) else 4)
    )
    again = sum(len(unit) * (count - 1) for unit, count in counts.items())
    return again / max(1, sum(map(len, units)))


def meta_talk(record: Record, rewrite: Rewrite) -> str | None:
    """The rewrite talks about the reference answer or itself, or announces what it is going to be,
    where the raw response does not."""
    return "meta_talk" if new_phrase(META_TALK, rewrite.text, record.response) else None


def leaked_thoughts(record: Record, rewrite: Rewrite) -> str | None:
    """The rewrite has the mark of a block of thoughts that the raw response does not have."""
    leaks = _THOUGHT.search(rewrite.text) and not _THOUGHT.search(record.response)
    return "thoughts" if leaks else None


def invented_turns(record: Record, rewrite: Rewrite) -> str | None:
    """The rewrite has tokens of a chat template, or goes on with a turn of somebody else."""
    return "turns" if new_phrase(INVENTED_TURNS, rewrite.text, record.response) else None
