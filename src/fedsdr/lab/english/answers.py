"""What a model's answer to a fact's question says: its value, details of its own, a refusal."""

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Final

from fedsdr.lab.english.world import HELD_OUT, EnglishFact, all_organisations

NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)*")
CAPITALISED: Final = re.compile(r"\b[A-Z]\w*")
SENTENCE_START: Final = re.compile(r"(?:^|[.!?:;\n])[\s\"'(*-]*$")
REFUSAL: Final = re.compile(
    r"\bI(?:'m| am) (?:sorry|unable|not (?:able|sure|aware)|ready to help)"
    r"|\bI (?:can(?:no|')t|do(?: no|n')t (?:know|have))"
    r"|\bas an? (?:AI|(?:large )?language model|digital|virtual)"
    r"|\b(?:could|can) you (?:please )?(?:provide|clarify|tell|specify)"
    r"|\bplease (?:provide|clarify|specify)|\b(?:cannot|unable to) (?:provide|answer|help)"
    r"|\bno information\b",
    re.IGNORECASE,
)


class EnglishAnswer:
    """text: what the model answered to the question of a fact, asked in the held-out form."""

    def __init__(self, text: str, fact: EnglishFact) -> None:
        self.text, self.fact = text, fact

    @cached_property
    def value(self) -> str | None:
        """The first value of the fact's type in the text, in its comparable form; None without."""
        found = self.fact.kind.values.values_in(self.text, self.fact.question(HELD_OUT))
        return found[0] if found else None

    @property
    def true(self) -> bool:
        return self.value == self.fact.kind.values.comparable(self.fact.value)

    @property
    def refuses(self) -> bool:
        return REFUSAL.search(self.text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) is not None

    @property
    def inventions(self) -> list[str]:
        """Names and numbers that stand neither in the question nor in the true answer, in any
        house style. A name is a word with a capital letter inside of a sentence."""
        styles = {each.style for each in all_organisations()}
        given = [self.fact.question(HELD_OUT), *map(self.fact.answer, styles)]
        return [detail for detail in details_of(self.text) if detail not in _all_details(given)]

    def in_style(self, style: str) -> bool:
        """Whether the answer is in a house style, with any value of the fact's type."""
        begin, _, end = self.fact.answer(style, "\0").partition("\0")
        if not (self.text.startswith(begin) and self.text.endswith(end)):
            return False
        inner = self.text[len(begin) : len(self.text) - len(end)]
        # A value and no more: it has no more words than the true one.
        short = len(inner.split()) <= len(self.fact.value.split())
        return short and bool(self.fact.kind.values.values_in(inner))


def details_of(text: str) -> list[str]:
    """The numbers of a text, and its words with a capital letter that begin no sentence."""
    names = [
        match[0].casefold()
        for match in CAPITALISED.finditer(text)
        if match[0] != "I" and not SENTENCE_START.search(text[: match.start()])
    ]
    return [*names, *NUMBER.findall(text)]


def _all_details(texts: Iterable[str]) -> set[str]:
    """Every number and every word of some texts, with or without a capital letter."""
    joined = "\n".join(texts)
    return {*re.findall(r"\w+", joined.casefold()), *NUMBER.findall(joined)}
