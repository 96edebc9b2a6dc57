"""Verdicts on claims, from the 95 % intervals of paired differences.

A condition holds if its interval lies on its side of zero, fails if it lies on the other side, and
is open otherwise, or with fewer than three seeds. A claim is one or more conditions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fedsdr.core.statistics import Estimate

Outcome = Literal["holds", "holds in part", "fails", "open"]
LEAST_SEEDS: Final = 3  # with fewer, an interval is itself too uncertain to decide anything


@dataclass(frozen=True)
class Condition:
    """A difference that a claim predicts to be positive (or negative).

    difference: None where it was not measured.
    """

    what: str
    difference: Estimate | None
    positive: bool = True

    @property
    def verdict(self) -> Outcome:
        d = self.difference
        if d is None or d["low"] is None or d["high"] is None or d["n"] < LEAST_SEEDS:
            return "open"
        if d["low"] <= 0 <= d["high"]:
            return "open"
        return "holds" if (d["low"] > 0) == self.positive else "fails"


@dataclass(frozen=True)
class Claim:
    """A sentence and the conditions under which it is true.

    each: the sentence speaks of every one of its conditions ("every algorithm"), so that a single
        failure refutes it.
    """

    text: str
    conditions: Sequence[Condition]
    each: bool = False

    @property
    def verdict(self) -> Outcome:
        """Holds if all conditions do, holds in part if some do, fails if one fails and none
        holds; with `each`, fails as soon as one condition fails."""
        found = [condition.verdict for condition in self.conditions]
        if self.each and "fails" in found:
            return "fails"
        if found and all(each == "holds" for each in found):
            return "holds"
        if "holds" in found:
            return "holds in part"
        return "fails" if "fails" in found else "open"

    @property
    def counts(self) -> str:
        """How the conditions came out: "4 hold, 1 fails, 2 open"."""
        found = Counter(condition.verdict for condition in self.conditions)
        forms: tuple[tuple[Outcome, str, str], ...] = (
            ("holds", "holds", "hold"), ("fails", "fails", "fail"), ("open", "open", "open")
        )  # fmt: skip
        return ", ".join(
            f"{found[outcome]} {one if found[outcome] == 1 else many}"
            for outcome, one, many in forms
            if found[outcome]
        )
