"""What a benchmark is: subjects, each with worked examples (shots) and questions, all in memory.

The files are read here and not by `datasets`, so that nothing is cached and nothing is fetched.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

BenchmarkRow = Mapping[str, Any]
Scores = dict[str, float]
LETTERS: Final = "ABCDEFGH"


class ChoiceLikelihoods(NamedTuple):
    """What a model said to a question with choices: the log-likelihood of each, in nats, and its
    length in tokens."""

    nats: Sequence[float]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Subject:
    """One part of a benchmark that has shots of its own.

    shots: the worked examples, in the order in which they stand in the prompt.
    introduction: what stands before the shots, with its line ends.
    """

    name: str
    shots: Sequence[BenchmarkRow]
    questions: Sequence[BenchmarkRow]
    introduction: str = ""


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is read, asked and scored.

    source: whose prompt format it is. layout: what its files are called, below the user's folder.
    metrics: the first one is the headline. read: the subjects in a folder; raises `UserError`.
    prompt: a question as it is asked; shots are asked the same way and answered after a space.
    target: the answer's text, or its index where there are choices.
    score: from what the model said, a text, or `ChoiceLikelihoods`.
    choices: the continuations that are compared; None where the model writes its answer.
    until, tokens: where a written answer ends, and its most tokens. version: goes up with every
    change of `score`: results are kept by it.
    """

    line: str
    source: str
    shots: int
    layout: str
    metrics: tuple[str, ...]
    read: Callable[[Path, int], list[Subject]]
    prompt: Callable[[BenchmarkRow], str]
    target: Callable[[BenchmarkRow], str | int]
    score: Callable[[BenchmarkRow, Any], Scores]
    choices: Callable[[BenchmarkRow], list[str]] | None = None
    until: tuple[str, ...] = ("\n",)
    tokens: int = 32
    version: int = 1

    def content(self, subjects: Sequence[Subject]) -> list[Any]:
        """All that scores depend on apart from the model, as JSON can write it: the rows, and how
        they are asked."""
        how = [self.version, self.shots, self.metrics, self.until, self.tokens]
        return [how, *([s.name, s.introduction, *map(self._asked, (s.shots, s.questions))]
                       for s in subjects)]  # fmt: skip

    def _asked(self, rows: Sequence[BenchmarkRow]) -> list[Any]:
        choices = self.choices or (lambda row: [])
        return [[row, self.prompt(row), self.target(row), choices(row)] for row in rows]


def lettered_question(question: str, options: Sequence[str]) -> str:
    """A question with its options, a letter each, as Hendrycks et al. wrote them."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, "Answer:"])


def choice_accuracy(likelihoods: Sequence[float], answer: int) -> float:
    """1 where the right choice has the highest log-likelihood (the first of equals), else 0."""
    return float(max(range(len(likelihoods)), key=likelihoods.__getitem__) == answer)
