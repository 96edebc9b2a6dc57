"""The aggregation error: how far the deployed model is from the ideal mean of products.

The mean of factors is not the factor of means: mean(B_k) mean(A_k) differs from mean(B_k A_k), the
weight that the clients' models have on average. With D the ideal, D' the deployed weight and D_0
the one before the round (all as changes of the frozen part, without alpha / r):

    aggregation/error    |D' - D|                Frobenius, over all layers
    aggregation/lost     |D' - D| / |D - D_0|    in units of the round's ideal movement

The intended effect of a server optimiser or a robust mean is included.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fedsdr.algorithms.aggregation.folding import merge_folded
from fedsdr.algorithms.aggregation.ranks import starting_point
from fedsdr.algorithms.contract import Algorithm, Round, ServerState, Update
from fedsdr.core.adapters import FOLDED, Adapter, norm, plain_factors, rank_of, subtract
from fedsdr.core.metrics import Mean
from fedsdr.core.products import ProductSum, Weights, product_weights


class ErrorFold(NamedTuple):
    state: ServerState
    products: ProductSum
    inner: Any


def with_aggregation_error(inner: Algorithm) -> Algorithm:
    """`inner`, with its aggregation error among the server's metrics.

    For algorithms that have a global model; costs a float64 copy of the adapted weights.
    """

    def add(fold: ErrorFold, update: Update) -> ErrorFold:
        change = plain_factors(update.change)
        start = starting_point(fold.state, rank_of(change))
        trained = {**start, **{key: start[key] + change[key] for key in change}}
        products = fold.products.plus(trained, update.weight)
        return ErrorFold(fold.state, products, inner.add(fold.inner, update))

    def finish(state: ServerState, fold: ErrorFold, round: Round) -> ServerState:
        new = inner.finish(state, fold.inner, round)
        ideal = {p: w / fold.products.weight for p, w in fold.products.weights().items()}
        frozen = state.memory.get(FOLDED)
        before, after = (merge_folded(inner.deployed(each)) for each in (state, new))
        error = norm(subtract(ideal, subtract_frozen(after, frozen)))
        moved = norm(subtract(ideal, subtract_frozen(before, frozen)))
        metrics = {
            "aggregation/error": Mean(error, 1),
            # A movement within rounding error of the weights counts as none.
            "aggregation/lost": Mean(error / moved if moved > 1e-9 * norm(ideal) else 0.0, 1),
        }
        return replace(new, metrics={**new.metrics, **metrics})

    return inner._replace(
        start=lambda state, round: ErrorFold(state, ProductSum(), inner.start(state, round)),
        add=add,
        finish=finish,
    )


def subtract_frozen(deployed: Adapter, frozen: Mapping[str, Any] | None) -> Weights:
    """The weights of an adapter less those of its frozen part."""
    formed = product_weights(deployed)
    if not frozen:
        return formed
    part = product_weights(dict(frozen))
    return {path: formed[path] - part[path] for path in formed}
