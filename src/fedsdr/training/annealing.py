"""How the learning rate falls over the rounds of a run."""

import math
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Annealing:
    """shape: "constant", or "cosine", from the stage's own rate in round 1 towards `final`.

    rounds: of the whole run.
    """

    shape: Literal["constant", "cosine"] = "constant"
    final: float = 0.0
    rounds: int = 1

    def rate(self, first: float, round: int) -> float:
        """The rate of round t = 1 .. T:  final + (first - final) (1 + cos(pi (t - 1) / T)) / 2.

        Loshchilov and Hutter 2017 (arXiv 1608.03983), Eq. 5, over rounds as in OpenFedLLM
        (arXiv 2402.06954), whose rounds count from 0.
        """
        if self.shape == "constant":
            return first
        cosine = math.cos(math.pi * (round - 1) / self.rounds)
        return self.final + (first - self.final) * (1 + cosine) / 2


CONSTANT: Final = Annealing()
