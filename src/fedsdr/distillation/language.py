"""Script and language of a text, by its letters and its most frequent words.

Both fail open: short texts, code and numbers are of no language, and pass.
"""

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import Final

from fedsdr.data.records import Record
from fedsdr.distillation.checks import Rewrite
from fedsdr.distillation.phrases import FUNCTION_WORDS

_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]*\$|https?://\S+", re.DOTALL)
# Chinese and Japanese are written in several scripts at once; Greek letters are symbols, too.
_SAME: Final = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "BOPOMOFO": "CJK"}
_SYMBOLS: Final = frozenset("GREEK MICRO OHM FEMININE MASCULINE MODIFIER SCRIPT".split())


def other_language(record: Record, rewrite: Rewrite) -> str | None:
    """The rewrite is mostly in another script than the raw response, mixes in one that neither
    prompt nor raw response has, or is in another language of those known by function words."""
    new, raw = letter_scripts(rewrite.text), letter_scripts(record.response)
    known = raw.keys() | letter_scripts("\n".join(turn.text for turn in record.prompt)).keys()
    mixed = sum(count for script, count in new.items() if script not in known)
    elsewhere = sum(count for script, count in new.items() if script not in raw)
    if mixed >= 2 or (raw.total() >= 8 and 2 * elsewhere > new.total()):
        return "language"
    languages = text_language(rewrite.text), text_language(record.response)
    return "language" if "" not in languages and len(set(languages)) == 2 else None


def without_code(text: str) -> str:
    """The text without code in backticks, formulas and addresses."""
    return _CODE.sub(" ", text)


def letter_scripts(text: str) -> Counter[str]:
    """How many letters a text has of each script (LATIN, CJK, CYRILLIC ...), code left out."""
    return Counter(
        script
        for letter in without_code(text)
        if letter.isalpha() and (script := _letter_script(letter)) not in _SYMBOLS
    )


@cache
def _letter_script(letter: str) -> str:
    first = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "?").partition(" ")[0]
    return _SAME.get(first, first)


def text_language(text: str) -> str:
    """The language with the most of its function words in the text: at least four, a seventh of
    all words, and half as many again as any other language; "" where none has."""
    words = re.findall(r"[^\W\d_]+", without_code(text).casefold())
    hits = sorted(
        (sum(word in frequent for word in words), language)
        for language, frequent in FUNCTION_WORDS.items()
    )
    (second, _), (first, language) = hits[-2:]
    return language if first >= max(4, len(words) / 7, 1.5 * second) else ""
