"""Curves over rounds, from the runs of a method: mean, lowest and highest over its seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsdr.report.load import Material, MethodRuns, RoundRow

Part = Literal["train", "eval"]


@dataclass(frozen=True)
class MeanCurve:
    """One method's metric; the four sequences have one entry a round."""

    method: str
    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


def round_values(rounds: Sequence[RoundRow], part: Part, name: str) -> dict[int, float]:
    """Round -> value of one run, where it was measured."""
    rows = ((row.index, row.train if part == "train" else row.eval) for row in rounds)
    return {index: row[name] for index, row in rows if name in row}


def mean_curve(method: MethodRuns, part: Part, name: str) -> MeanCurve | None:
    """The mean over the rounds that all runs with this metric share: a run that is ahead of the
    others must not bend the mean. None where no run has it."""
    runs = [found for run in method.runs if (found := round_values(run.rounds, part, name))]
    if not runs:
        return None
    shared = sorted(set.intersection(*(set(run) for run in runs)))
    columns = [[run[index] for run in runs] for index in shared]
    return MeanCurve(
        method.name,
        tuple(shared),
        tuple(sum(column) / len(column) for column in columns),
        tuple(map(min, columns)),
        tuple(map(max, columns)),
        len(runs),
    )


def method_curves(material: Material, part: Part, name: str) -> list[MeanCurve]:
    """`mean_curve` of each method that has one."""
    found = (mean_curve(method, part, name) for method in material.methods)
    return [each for each in found if each is not None and each.rounds]


def metric_names(material: Material, part: Part, keep: Callable[[str], bool]) -> set[str]:
    """The names of the metrics that any run has."""
    rows = (row for method in material.methods for run in method.runs for row in run.rounds)
    found = (row.train if part == "train" else row.eval for row in rows)
    return {name for row in found for name in row if keep(name)}


def mean_of(method: MethodRuns, name: str) -> float | None:
    """Mean of a training metric over all rounds of all runs."""
    found = [
        value for run in method.runs for value in round_values(run.rounds, "train", name).values()
    ]
    return sum(found) / len(found) if found else None


def total_of(method: MethodRuns, name: str) -> float | None:
    """Sum of a training metric over the rounds, averaged over the runs that have it."""
    runs = [found for run in method.runs if (found := round_values(run.rounds, "train", name))]
    return sum(sum(run.values()) for run in runs) / len(runs) if runs else None
