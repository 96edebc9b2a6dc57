"""What a model's answer to a fact's question says: its value, details of its own, a refusal."""

import re
from functools import cached_property
from typing import Final

from fedsdr.data.records import Record, Turn
from fedsdr.distillation.checks import Rewrite
from fedsdr.distillation.evasion import no_answer
from fedsdr.distillation.invention import new_names
from fedsdr.lab.english.world import HELD_OUT, EnglishFact, all_organisations

NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)*")


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
        """Whether the check `no_answer` would refuse it as a rewrite of the true sentence."""
        prompt = (Turn("user", self.fact.question(HELD_OUT)),)
        truth = Record(prompt, self.fact.answer("{sentence}"))
        return no_answer(truth, Rewrite(self.text, finished=True)) is not None

    @property
    def inventions(self) -> set[str]:
        """Names and numbers that stand neither in the question nor in the true answer, in any
        house style; names as the gate's check `invention` finds them."""
        styles = [each.style for each in all_organisations()]
        given = "\n".join([self.fact.question(HELD_OUT), *map(self.fact.answer, styles)])
        numbers = {*NUMBER.findall(self.text)} - {*NUMBER.findall(given)}
        return new_names(self.text, given) | numbers

    def in_style(self, style: str) -> bool:
        """Whether the answer is in a house style, with any value of the fact's type."""
        begin, _, end = self.fact.answer(style, "\0").partition("\0")
        if not (self.text.startswith(begin) and self.text.endswith(end)):
            return False
        inner = self.text[len(begin) : len(self.text) - len(end)]
        # A value and no more: it has no more words than the true one.
        short = len(inner.split()) <= len(self.fact.value.split())
        return short and bool(self.fact.kind.values.values_in(inner))
