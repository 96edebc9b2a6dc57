"""The wordings of phrases.toml, which the checks of the quality gate look for."""

import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Final

_FILE = resources.files("fedsdr.distillation") / "phrases.toml"
_TABLES = tomllib.loads(_FILE.read_text("utf-8"))


def _patterns(table: str, key: str = "patterns") -> tuple[re.Pattern[str], ...]:
    flags = re.IGNORECASE | re.MULTILINE
    return tuple(re.compile(pattern, flags) for pattern in _TABLES[table][key])


NO_ANSWER: Final = _patterns("no_answer")
COURTESIES: Final = _patterns("no_answer", "courtesies")
ASSISTANT_TOPICS: Final = _patterns("no_answer", "topics")
META_TALK: Final = _patterns("meta_talk")
INVENTED_TURNS: Final = _patterns("turns")
DOUBTS: Final = _patterns("doubt")
NEGATIONS: Final = frozenset(_TABLES["negation"]["words"].split())
UNDONE_BY: Final = frozenset(_TABLES["negation"]["undone_by"].split())
CLAUSE_ENDS: Final = frozenset(_TABLES["negation"]["clause_ends"].split())
FUNCTION_WORDS: Final = {
    language: frozenset(words.split()) for language, words in _TABLES["function_words"].items()
}

_CONTRACTIONS: Final = [
    (re.compile(short, re.IGNORECASE), full)
    for short, full in (
        (r"\bcan['\u2019]t\b|\bcannot\b", "can not"),
        (r"\bwon['\u2019]t\b", "will not"),
        (r"(?<=\w)n['\u2019]t\b", " not"),
        (r"(?<=\bi)['\u2019]m\b", " am"),
        (r"(?<=\w)['\u2019]re\b", " are"),
        (r"(?<=\w)['\u2019]ve\b", " have"),
        (r"(?<=\w)['\u2019]ll\b", " will"),
        (r"(?<=\w)['\u2019]d\b", " would"),
        (r"\b(what|here|that|it|there|who|where|how)['\u2019]s\b", r"\1 is"),
    )
]


def new_phrase(patterns: Sequence[re.Pattern[str]], text: str, *known: str) -> str:
    """What in `text` matches a pattern that none of the `known` texts matches; "" if nothing."""
    text, known = full_forms(text), tuple(map(full_forms, known))
    for pattern in patterns:
        found = pattern.search(text)
        if found and not any(map(pattern.search, known)):
            return found.group()
    return ""


def full_forms(text: str) -> str:
    """The text with its English contractions written out, so that "not" is a word of its own."""
    for short, full in _CONTRACTIONS:
        text = short.sub(full, text)
    return text
