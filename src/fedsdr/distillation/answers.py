"""Checks against what is known to be right: gold answers, final numbers, offered labels."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from fedsdr.data.records import ANSWER_MARK, Record
from fedsdr.distillation.checks import Rewrite
from fedsdr.distillation.numerals import final_number, numbers_in
from fedsdr.distillation.phrases import (
    CLAUSE_ENDS,
    DOUBTS,
    NEGATIONS,
    UNDONE_BY,
    full_forms,
    new_phrase,
)

# Labels that are ordinary words, too ("A", "no"): before another word they count only where that
# one goes on with a sentence about them.
_GOES_ON: Final = frozenset("is was because since as for and or but it this that there the".split())
_BRACES: Final = re.compile(r"\{([^{}/]+(?:/[^{}/]+)+)\}")


def check_answer(record: Record, rewrite: Rewrite) -> str | None:
    """The rewrite must state the record's gold answer and not deny it.

    Words count whole, in any case, spacing and Unicode form; 1,200 is 1200, and 4 is not in 4.5.
    """
    if not record.answer:
        return None
    text, gold, raw = rewrite.text, record.answer, record.response
    if contains_words(text, gold):
        denied = contains_words(raw, gold) and not affirms_words(raw, gold)  # as the gold text does
        right = denied or affirms_words(text, gold)
    else:
        right = is_numeric(gold) and final_number(text) == final_number(gold)
    return None if right else "wrong_answer"


def check_number(record: Record, rewrite: Rewrite) -> str | None:
    """The final number must be the gold one: the record's answer where that is a number, or what
    follows `####` in the raw response. Records that have neither pass: a number in running text
    is no answer."""
    if is_numeric(record.answer):
        gold = record.answer
    elif not record.answer and ANSWER_MARK in record.response:
        gold = record.response
    else:
        return None
    expected = final_number(gold)
    if expected is None:
        return None
    return None if final_number(rewrite.text) == expected else "wrong_number"


def check_label(record: Record, rewrite: Rewrite) -> str | None:
    """Where the instruction offers {a/b/c}, the rewrite must name the raw label and no other, and
    neither deny nor doubt it."""
    offered = _BRACES.search(record.instruction)
    if not offered:
        return None
    options = [option.strip() for option in offered.group(1).split("/")]
    expected = named_options(record.response, options)
    if named_options(rewrite.text, options) != expected:
        return "wrong_label"
    return "wrong_label" if new_phrase(DOUBTS, rewrite.text, record.response, *options) else None


def is_numeric(answer: str) -> bool:
    """Whether a gold answer is one number, perhaps with a sign or a unit of at most two words."""
    return len(list(numbers_in(answer))) == 1 and len(re.findall(r"[^\W\d_]+", answer)) <= 2


def contains_words(text: str, phrase: str) -> bool:
    """Whether `text` contains `phrase` as whole words, whatever their case, spacing and form."""
    return bool(_places(folded_words(text), folded_words(phrase)))


def affirms_words(text: str, phrase: str) -> bool:
    """Whether `text` contains `phrase` somewhere without denying it."""
    words = folded_words(text)
    return any(not is_negated(words, i) for i in _places(words, folded_words(phrase)))


def named_options(text: str, options: Sequence[str]) -> set[str]:
    """The options that a text names and does not deny; "not true" is not "true"."""
    words = cased_words(text)
    folded = [word.casefold() for word in words]
    taken: set[int] = set()
    named = set()
    for option in sorted(options, key=lambda each: -len(folded_words(each))):
        wanted = folded_words(option)
        for i in _places(folded, wanted):
            span = range(i, i + len(wanted))
            if taken.isdisjoint(span) and _is_label(words, i, option):
                taken.update(span)
                if not is_negated(folded, i):
                    named.add(option)
    return named


def _is_label(words: Sequence[str], i: int, option: str) -> bool:
    """Whether the word at `i` is the option rather than an article or a "no" before a noun."""
    if len(option) > 1 and option.casefold() != "no":
        return True
    after = words[i + 1] if i + 1 < len(words) else ""
    alone = not after.isalpha() or not after.islower() or after in _GOES_ON
    return alone and (len(option) > 1 or words[i] == option or len(words) <= 2)


def is_negated(words: Sequence[str], i: int) -> bool:
    """Whether one of the three words before the i-th, within its clause, denies it."""
    for k in range(i - 1, max(i - 4, -1), -1):
        if words[k] in CLAUSE_ENDS:
            return False
        if words[k] in NEGATIONS:
            return words[k + 1] not in UNDONE_BY
    return False


def _places(words: Sequence[str], wanted: Sequence[str]) -> list[int]:
    count = len(wanted)
    return [i for i in range(len(words) - count + 1) if words[i : i + count] == wanted]


def folded_words(text: str) -> list[str]:
    """`cased_words` without case."""
    return [word.casefold() for word in cased_words(text)]


def cased_words(text: str) -> list[str]:
    """Words, numbers in one spelling and single signs; Unicode NFKC; "isn't" is "is not"."""
    text = full_forms(unicodedata.normalize("NFKC", text))
    words: list[str] = []
    end = 0
    for number in numbers_in(text):
        words += _plain_words(text[end : number.start])
        words.append(f"{number.value:.15g}")
        end = number.end
    return words + _plain_words(text[end:])


def _plain_words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)
