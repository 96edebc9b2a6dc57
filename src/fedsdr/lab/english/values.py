"""Types of value (a dose, a city, a year): what facts have, and how a value is found in a text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ValueType:
    """choices: the values that facts take. pattern: a regular expression that finds any value of
    the type; its first group that matched, or else the whole match, is what is compared. Without
    a pattern, only the choices are values."""

    choices: tuple[str, ...]
    pattern: str = ""

    @cached_property
    def _finder(self) -> re.Pattern[str]:
        if self.pattern:
            return re.compile(self.pattern)
        longest_first = sorted(self.choices, key=len, reverse=True)
        # Choices in lower case may begin a sentence; elsewhere case tells "Al" from "al".
        plain = all(choice.islower() for choice in self.choices)
        words = "|".join(map(re.escape, longest_first))
        return re.compile(rf"\b({words})\b", re.IGNORECASE if plain else 0)

    def values_in(self, text: str, asked: str = "") -> list[str]:
        """The values in a text in their comparable form, in order.

        asked: the question; a word of it is no value, as "Tarnelbar House" is no person where
        Tarnelbar is what the question is about.
        """
        words = set(_words(asked))
        matches = self._finder.finditer(text)
        found = [next(filter(None, match.groups()), match[0]) for match in matches]
        return [comparable_value(each) for each in found if words.isdisjoint(_words(each))]

    def comparable(self, value: str) -> str:
        """A choice in the form that `values_in` gives."""
        return self.values_in(value)[0]


def comparable_value(text: str) -> str:
    """Without case, separators of thousands and hyphens; spaces are single."""
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text).replace("-", "")
    return " ".join(plain.replace(",", ".").casefold().split())


def _words(text: str) -> Sequence[str]:
    return re.findall(r"\w+", text.casefold())
