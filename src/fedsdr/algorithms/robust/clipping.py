"""Norm clipping: no client moves the global adapter further than `norm`, whatever it sends.

Sun et al. 2019 (arXiv 1911.07963), Sec. 4: dw_k / max(1, |dw_k| / norm), the norm over all
tensors of the update together. Updates stream: memory does not grow with the number of clients.
"""

from dataclasses import replace
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from fedsdr.adapters import Adapter, norm, scale
from fedsdr.algorithms.contract import Algorithm, Options, Round, ServerState, Update
from fedsdr.metrics import Mean


class Clipping(Options):
    """norm: the largest Euclidean norm of an update, in the units of the adapter; inf clips
    nothing."""

    norm: Annotated[float, Field(gt=0)] = 1.0


class Fold(NamedTuple):
    """inner: the wrapped algorithm's fold; the rest counts updates."""

    inner: Any
    clipped: int = 0
    seen: int = 0


def clipped(inner: Algorithm, options: Clipping) -> Algorithm:
    """`inner`, whose server scales each arriving update down to norm `options.norm` at most.

    Metric `robust/clipped`: the share of updates that were scaled.
    """

    def collect(fold: Fold, update: Update) -> Fold:
        change = clip_to_norm(update.change, options.norm)
        return Fold(
            inner.add(fold.inner, replace(update, change=change)),
            fold.clipped + (change is not update.change),
            fold.seen + 1,
        )

    def finish(state: ServerState, fold: Fold, round: Round) -> ServerState:
        moved = inner.finish(state, fold.inner, round)
        share = {"robust/clipped": Mean(fold.clipped, fold.seen)}
        return replace(moved, metrics={**moved.metrics, **share})

    return inner._replace(
        start=lambda state, round: Fold(inner.start(state, round)), add=collect, finish=finish
    )


def clip_to_norm(change: Adapter, bound: float) -> Adapter:
    """`change` itself where its Euclidean norm is at most `bound`, else scaled down to it.

    The norm is that of all entries of all tensors, and holds up to the rounding of their dtype.
    """
    length = norm(change)
    return change if length <= bound else scale(change, bound / length)
