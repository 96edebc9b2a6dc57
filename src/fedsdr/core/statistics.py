"""Estimates with 95 % intervals: Student's t, paired differences, Wilson, bootstrap; the sign test.

In `core`, since rooms from distillation to the judge state their numbers by it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Final, NamedTuple, TypedDict

import numpy as np
from scipy import stats

BOOTSTRAP_RESAMPLES: Final = 5000


class Estimate(TypedDict):
    """A mean over n runs with its 95 % interval; the bounds are None where there is no interval
    (for n = 1, say)."""

    n: int
    mean: float
    low: float | None
    high: float | None


class Interval(NamedTuple):
    """A value with its 95 % interval; the bounds are None where there is no interval."""

    mean: float
    low: float | None = None
    high: float | None = None


class Proportion(NamedTuple):
    """A share, 0 to 1, with its 95 % interval."""

    share: float
    low: float
    high: float


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; None for a single one."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def t_interval(values: Sequence[float]) -> Estimate:
    """Student's t interval for the mean of independent runs."""
    n, error = len(values), standard_error(values)
    mean = math.fsum(values) / n
    if error is None:
        return {"n": n, "mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return {"n": n, "mean": mean, "low": mean - half, "high": mean + half}


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The mean of a - b over pairs (runs of one seed, say): what both share cancels out."""
    return t_interval([x - y for x, y in zip(a, b, strict=True)])


def metric_intervals(runs: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """The t interval of each metric, over the runs of one method that have it."""
    names = sorted({name for run in runs for name in run})
    return {name: t_interval([run[name] for run in runs if name in run]) for name in names}


def wilson_interval(share: float, n: float) -> Proportion:
    """Wilson's score interval (1927) of a share in a sample of n; for weighted samples n is the
    effective size, which need not be whole."""
    z = NormalDist().inv_cdf(0.975)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    # At a share of 0 or 1 that end is the share itself, up to rounding.
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
    return Proportion(share, low, high)


def sign_test(up: int, down: int) -> float | None:
    """The two-sided p of the exact sign test, which is McNemar's for pairs that differ; None where
    there is nothing to test."""
    return float(stats.binomtest(up, up + down).pvalue) if up + down else None


def bootstrap_interval(
    samples: tuple[Any, ...], statistic: Callable[..., Any]
) -> tuple[float | None, float | None]:
    """A 95 % percentile interval of `statistic`, resampling positions of all samples together.

    samples: arrays (n,). statistic: of the samples, along `axis`. (None, None) where the samples
    do not vary.
    """
    if len(samples[0]) < 2 or all(np.ptp(sample) == 0 for sample in samples):
        return None, None
    found = stats.bootstrap(
        samples, statistic, paired=True, vectorized=True, method="percentile",
        n_resamples=BOOTSTRAP_RESAMPLES, random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def normal_interval(value: float, resampled: Sequence[float]) -> Interval:
    """`value` plus and minus 1.96 standard deviations of its resampled values; no interval where
    these do not vary or are not all finite."""
    spread = 1.96 * float(np.std(resampled, ddof=1))
    return Interval(value, value - spread, value + spread) if spread > 0 else Interval(value)


def non_dominated(points: Sequence[Sequence[float]]) -> list[bool]:
    """Of each point, whether no other is at least as large in all coordinates and larger in one."""
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)
