"""Metrics are (sum, weight) pairs that merge by addition; the division comes last.

So a mean over clients of means over examples cannot happen by accident.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Mean(NamedTuple):
    """A mean that can still be merged: the total `sum` of `weight` items."""

    sum: float
    weight: float

    @property
    def value(self) -> float:
        return self.sum / self.weight if self.weight else 0.0

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.sum + other.sum, self.weight + other.weight)


Metrics = Mapping[str, Mean]


def hit_percentage(hits: Sequence[bool]) -> Mean:
    """The share of hits, in percent."""
    return Mean(100.0 * sum(hits), len(hits))


def merge_all(parts: Iterable[Metrics]) -> dict[str, Mean]:
    """Merge metrics of the same name."""
    merged: dict[str, Mean] = {}
    for part in parts:
        for name, mean in part.items():
            merged[name] = merged[name].merge(mean) if name in merged else mean
    return merged


def drop_weights(metrics: Metrics) -> dict[str, Mean]:
    """The same means, each of weight 1, which hides how many items they are of."""
    return {name: Mean(mean.value, 1.0) for name, mean in metrics.items() if mean.weight}


def metric_values(metrics: Metrics) -> dict[str, float]:
    """Metric -> its mean, in name order; metrics of weight 0 are left out."""
    return {name: mean.value for name, mean in sorted(metrics.items()) if mean.weight}
