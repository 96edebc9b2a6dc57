"""Means over seeds with their confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

from scipy import stats


class Estimate(TypedDict):
    """A mean over n runs with its 95 % interval; the bounds are None where n is 1."""

    n: int
    mean: float
    low: float | None
    high: float | None


def t_interval(values: Sequence[float]) -> Estimate:
    """Student's t interval for the mean of independent runs."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return {"n": n, "mean": mean, "low": None, "high": None}
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * spread
    return {"n": n, "mean": mean, "low": mean - half, "high": mean + half}


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The mean of a - b over runs that share a seed, which cancels what the seeds do to both."""
    return t_interval([x - y for x, y in zip(a, b, strict=True)])


def metric_intervals(runs: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Metric by metric, over the runs of one method."""
    names = sorted({name for run in runs for name in run})
    return {name: t_interval([run[name] for run in runs if name in run]) for name in names}
