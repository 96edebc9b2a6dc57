"""The quality gate: small functions (record, rewrite) -> the reason to refuse it, or None.

SDFT (Yang et al., ACL 2024, arXiv 2402.13669) keeps the raw response whenever the rewrite is
degenerate or gets a checkable answer wrong; these are its conditions, each on its own. Checks
that need more than the two texts (a model, the client's other records, a seed) are judges of
whole batches, in files of their own; `fedsdr.distillation.verify` puts both together.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fedsdr.data.records import ANSWER_MARK, Record


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

META_TALK: Final = re.compile(
    r"reference (answer|response)|\b(my|your) (own )?(response|rewrite|version)\b"
    r"|\bguided by the\b|\brewritten (answer|response)\b",
    re.IGNORECASE,
)
NUMBER_PATTERN: Final = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def check_empty(record: Record, rewrite: Rewrite) -> str | None:
    """A rewrite must have some text."""
    return None if rewrite.text.strip() else "empty"


def check_truncated(record: Record, rewrite: Rewrite) -> str | None:
    """A rewrite must end within its token limit."""
    return None if rewrite.finished else "truncated"


def check_repetition(record: Record, rewrite: Rewrite) -> str | None:
    """A text that goes in circles: one of its four-word sequences is a fifth of all of them,
    and it is more repetitive than the raw response (poems and lists may repeat)."""
    share = most_repeated(rewrite.text)
    return "repetition" if share > max(0.2, most_repeated(record.response)) else None


def most_repeated(text: str, n: int = 4) -> float:
    """Share that the commonest n-word sequence has of all, 0 where none occurs three times."""
    words = text.split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    commonest = max(grams.values(), default=0)
    return commonest / grams.total() if commonest >= 3 else 0.0


def meta_talk(record: Record, rewrite: Rewrite) -> str | None:
    """The rewrite talks about the reference answer or itself, where the raw response does not."""
    talks = META_TALK.search(rewrite.text) and not META_TALK.search(record.response)
    return "meta_talk" if talks else None


def check_answer(record: Record, rewrite: Rewrite) -> str | None:
    """The rewrite must contain the record's gold answer, word for word."""
    if not record.answer:
        return None
    return None if contains_words(rewrite.text, record.answer) else "wrong_answer"


def check_number(record: Record, rewrite: Rewrite) -> str | None:
    """The final number must be the gold one: the record's answer, or what follows `####` in the
    raw response. Records that have neither pass: a number in running text is no answer."""
    gold = record.answer or (record.response if ANSWER_MARK in record.response else "")
    expected = final_number(gold)
    if expected is None:
        return None
    return None if final_number(rewrite.text) == expected else "wrong_number"


def check_label(record: Record, rewrite: Rewrite) -> str | None:
    """Where the instruction offers {a/b/c}, the rewrite must name the raw label and no other."""
    offered = re.search(r"\{([^{}/]+(?:/[^{}/]+)+)\}", record.instruction)
    if not offered:
        return None
    options = [option.strip() for option in offered.group(1).split("/")]
    named = [option for option in options if contains_words(rewrite.text, option)]
    expected = [option for option in options if contains_words(record.response, option)]
    return None if named == expected else "wrong_label"


def contains_words(text: str, phrase: str) -> bool:
    """Whether `text` contains `phrase` as whole words, ignoring case and spacing."""
    words, wanted = _words(text), _words(phrase)
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def final_number(text: str) -> float | None:
    """The first number after the last `####`, or else the last number in the text."""
    _, mark, rest = text.rpartition(ANSWER_MARK)
    numbers = NUMBER_PATTERN.findall(rest)
    return float(numbers[0 if mark else -1].replace(",", "")) if numbers else None


PLAIN_CHECKS: Final[Mapping[str, Check]] = {
    "empty": check_empty,
    "truncated": check_truncated,
    "repetition": check_repetition,
    "meta_talk": meta_talk,
    "answer": check_answer,
    "number": check_number,
    "label": check_label,
}
