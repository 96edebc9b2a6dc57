"""Inventions: names and numbers of a rewrite that stand neither in its prompt nor in the raw
response, and names of either that are misspelt.

By spelling alone: what is true but was not asked for is an invention, too. Names are capitalised
words within a sentence, so that scripts without capitals have none, and German, which capitalises
every noun, is left out.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator
from itertools import product
from typing import Final, NamedTuple

from fedsdr.data.records import Record
from fedsdr.distillation.checks import Rewrite
from fedsdr.distillation.language import text_language, without_code
from fedsdr.distillation.numerals import numbers_in, worded_numbers
from fedsdr.distillation.support import is_stop_word

_WORD: Final = re.compile(r"[^\W\d_]\w*")
_OPENS_SENTENCE: Final = re.compile(
    r"(?:^|[.!?:;\n\"\u201c\u201d\u201e«({\[*\u2022\u2013\u2014>|-])\W*$"
)
# What stands before a colon or a dash, at the start of a line or of a point of a list; what is bold
# there; and lines that Markdown calls headings.
_HEADING: Final = re.compile(
    r"^[ \t]*(?:(?:\d{1,2}[.):]|[a-z][.)]|[-*\u2022+])[ \t]*)?"
    r"(?:#+[ \t][^\n]*|(\*\*|__)[^*_\n]{1,80}\1"
    r"|[^.!?:;\n]{1,80}(?::(?=\s)|[ \t][-\u2013\u2014][ \t]))",
    re.M,
)
_LIST_MARK: Final = re.compile(r"^\W*\d{1,2}[.):]\s|\b(?:step|no\.|part)\s*\d+", re.I | re.M)
_ENDINGS: Final = tuple("s n i y e al an ans ian ians ese uese ish".split())
_MOST_DERIVED: Final = 12  # source numbers; of more, the results are too many to mean anything


class _Capitalised(NamedTuple):
    """A word that begins with a capital: folded, and whether its sentence does, too."""

    word: str
    opens: bool


def invents_facts(record: Record, rewrite: Rewrite) -> str | None:
    """The rewrite has a misspelt name, or a name or number that is in neither of its sources."""
    text = unicodedata.normalize("NFKC", without_code(rewrite.text))
    source = unicodedata.normalize(
        "NFKC", "\n".join([*(turn.text for turn in record.prompt), record.response])
    )
    invents = (
        invented_numbers(text, source) or misspelt_names(text, source) or new_names(text, source)
    )
    return "invention" if invents else None


def invented_numbers(text: str, source: str) -> set[float]:
    """Numbers in digits that the source has neither in digits nor in words, and that are neither
    the numbers of a list nor the sum, difference, product or quotient of two in the source."""
    given = {abs(number.value) for number in numbers_in(source)} | {*worded_numbers(source)}
    said = {abs(number.value) for number in numbers_in(_LIST_MARK.sub(" ", text))}
    new = said - given
    return new - set(_results(given)) if new and len(given) <= _MOST_DERIVED else new


def _results(numbers: Collection[float]) -> Iterator[float]:
    for a, b in product(numbers, repeat=2):
        yield from (a + b, a - b, a * b)
        if b:
            yield a / b


def misspelt_names(text: str, source: str) -> set[str]:
    """Capitalised words, unknown to the source, that are a letter or, from eight letters, two away
    from one of its capitalised words."""
    known = {each.word for each in _capitalised(source) if len(each.word) >= 5}
    return {
        new.word
        for new in _unknown(text, source)
        for name in known
        if edit_distance(new.word, name, 2) <= (2 if len(name) >= 8 else 1)
    }


def new_names(text: str, source: str) -> set[str]:
    """Capitalised words within a sentence that are unknown to the source, and that the text never
    writes without a capital. Words in capitals only, headings in title case, and texts in German
    have none."""
    if text_language(text) == "german":
        return set()
    plain = {word for word in _WORD.findall(text) if word.islower()}
    unknown = _unknown(_HEADING.sub(_without_title, text), source)
    return {each.word for each in unknown if not each.opens and each.word not in plain}


def _without_title(heading: re.Match[str]) -> str:
    """Nothing of a heading in title case, where capitals make no names; else the heading."""
    words = [word for word in _WORD.findall(heading[0]) if not is_stop_word(word.casefold())]
    return "\n" if all(word[0].isupper() for word in words) else heading[0]


def _unknown(text: str, source: str) -> Iterator[_Capitalised]:
    """Capitalised words of which no form, inflected or not, stands in the source."""
    forms = {form for word in _WORD.findall(source.casefold()) for form in _forms(word)}
    return (each for each in _capitalised(text) if forms.isdisjoint(_forms(each.word)))


def _capitalised(text: str) -> Iterator[_Capitalised]:
    for match in _WORD.finditer(text):
        word = match.group()
        shouted = len(word) == 1 or word.isupper()
        if word[0].isupper() and not shouted and not is_stop_word(word.casefold()):
            opens = _OPENS_SENTENCE.search(text[max(0, match.start() - 8) : match.start()])
            yield _Capitalised(word.casefold(), match.start() == 0 or bool(opens))


def _forms(word: str) -> set[str]:
    """The word, and what stands before each of its endings, four letters or more."""
    cut = {word.removesuffix(ending) for ending in _ENDINGS if len(word) >= len(ending) + 4}
    return {word} | cut


def edit_distance(a: str, b: str, limit: int) -> int:
    """Levenshtein's distance of two words; `limit` + 1 where it is more than `limit`."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
        if min(row) > limit:
            return limit + 1
    return row[-1]
