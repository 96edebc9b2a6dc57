"""Lexical support: the share of a rewrite's words in its sources, and of theirs that it keeps.

A check that needs no model, the offline stand-in for entailment, and not entailment: it compares
words. It sees invented names and figures and dropped ones. It does not see a "not" that was
added, two values that changed places, or that "purchased" says the same as "bought"; a number
that was spelt out counts as missing. Stop words are English ones.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache
from typing import Final

from fedsdr.data.records import Record
from fedsdr.distillation.checks import Candidate, RewriteCheck, Verdict
from fedsdr.recipe.sections.distill import Support

TERM: Final = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?!\w)|\w+",
)


def content_terms(text: str) -> set[str]:
    """Distinct content words in lower case, and numbers in one spelling: 1,200.50 is 1200.5.

    Stop words and single letters are left out.
    """
    found = set()
    for match in TERM.finditer(text.lower()):
        if number := match["number"]:
            found.add(f"{float(number.replace(',', '')):.15g}")
        elif len(match[0]) > 1 and not is_stop_word(match[0]):
            found.add(match[0])
    return found


def is_stop_word(word: str) -> bool:
    """Whether a word in lower case is one of scikit-learn's English stop words."""
    return word in _stop_words()


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def supported_share(record: Record, text: str) -> float:
    """Share of the text's terms that occur in the prompt or the raw response; 1 without any."""
    source = content_terms(record.response).union(
        *(content_terms(turn.text) for turn in record.prompt)
    )
    return _share(content_terms(text), source)


def kept_share(record: Record, text: str, rare: Collection[str]) -> float:
    """Share of the raw response's numbers and `rare` words that occur in the text; 1 without."""
    specific = {term for term in content_terms(record.response) if term in rare or is_number(term)}
    return _share(specific, content_terms(text))


def _share(part: set[str], whole: set[str]) -> float:
    return len(part & whole) / len(part) if part else 1.0


def is_number(term: str) -> bool:
    """Whether a term of `content_terms` is a number."""
    return term[0].isdecimal() and term.replace(".", "", 1).isdecimal()


def rare_words(records: Sequence[Record], share: float) -> frozenset[str]:
    """Terms in the raw responses of at most `share` of the records, or of one of them."""
    counts = Counter(term for record in records for term in content_terms(record.response))
    limit = max(1.0, share * len(records))
    return frozenset(term for term, count in counts.items() if count <= limit)


def support_judge(options: Support, records: Sequence[Record]) -> RewriteCheck:
    """records: all of the client's, by which words are rare or not."""
    rare = rare_words(records, options.rare)

    def judge(candidates: Sequence[Candidate]) -> list[Verdict]:
        return [_verdict(each, options, rare) for each in candidates]

    return judge


def _verdict(candidate: Candidate, options: Support, rare: Collection[str]) -> Verdict:
    record, text = candidate.record, candidate.rewrite.text
    measured = {"supported": supported_share(record, text), "kept": kept_share(record, text, rare)}
    if measured["supported"] < options.supported:
        return Verdict("unsupported", measured)
    return Verdict("facts_lost" if measured["kept"] < options.kept else "", measured)
