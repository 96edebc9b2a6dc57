"""Norm clipping: no client moves the global adapter further than `norm`, whatever it sends.

Sun et al. 2019 (arXiv 1911.07963), Sec. 4: dw_k / max(1, |dw_k| / norm), the norm over all
tensors of the update together. A bound on the length bounds nothing if a client says how much its
update weighs, so all weigh the same. Updates stream: memory does not grow with the number of
clients.
"""

from dataclasses import replace
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from fedsdr.algorithms.contract import Algorithm, Options, Round, ServerState, Update
from fedsdr.core.adapters import Adapter, norm, scale
from fedsdr.core.metrics import Mean


class Clipping(Options):
    """How much one update may move the mean."""

    norm: Annotated[float, Field(gt=0)] = 10.0
    """The largest Euclidean norm of an update, in the units of the adapter; inf clips nothing."""


class ClippedFold(NamedTuple):
    """inner: the wrapped algorithm's fold; clipped: share of updates; length: mean norm."""

    inner: Any
    clipped: Mean = Mean(0, 0)
    length: Mean = Mean(0.0, 0)


def with_clipping(inner: Algorithm, options: Clipping) -> Algorithm:
    """`inner`, whose server scales each update down to norm `options.norm`, and weighs it 1.

    Metrics: `robust/clipped`, the share of updates that were scaled, and `robust/norm`, their mean
    norm as they came, by which to choose the bound.
    """

    def collect(fold: ClippedFold, update: Update) -> ClippedFold:
        change = clip_to_norm(update.change, options.norm)
        return ClippedFold(
            inner.add(fold.inner, replace(update, change=change, weight=1.0)),
            fold.clipped.merge(Mean(int(change is not update.change), 1)),
            fold.length.merge(Mean(norm(update.change), 1)),
        )

    def finish(state: ServerState, fold: ClippedFold, round: Round) -> ServerState:
        moved = inner.finish(state, fold.inner, round)
        metrics = {"robust/clipped": fold.clipped, "robust/norm": fold.length}
        return replace(moved, metrics={**moved.metrics, **metrics})

    return inner._replace(
        start=lambda state, round: ClippedFold(inner.start(state, round)),
        add=collect,
        finish=finish,
    )


def clip_to_norm(change: Adapter, bound: float) -> Adapter:
    """`change` itself where its Euclidean norm is at most `bound`, else scaled down to it.

    The norm is that of all entries of all tensors, and holds up to the rounding of their dtype.
    """
    length = norm(change)
    return change if length <= bound else scale(change, bound / length)
