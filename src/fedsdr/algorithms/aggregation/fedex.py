"""FedEx-LoRA: average the factors, and fold what that misses into the base.

Singhal et al. 2025 (arXiv 2410.09432), Eq. 6: the residual sum_k p_k B_k A_k - B A, with B and A
the mean factors, joins the frozen model. So the deployed model is the exact mean of products.
"""

from typing import Any, NamedTuple

from fedsdr.algorithms.aggregation.folding import fold_in, with_folded_part
from fedsdr.algorithms.contract import Algorithm, NoOptions, Round, ServerState, Update
from fedsdr.core.adapters import FOLDED, Adapter, WeightedSum, add, no_sum, plain_factors
from fedsdr.core.products import ProductSum


class FedExFold(NamedTuple):
    before: Adapter
    changes: WeightedSum
    products: ProductSum
    inner: Any


def fedex_lora(inner: Algorithm, options: NoOptions) -> Algorithm:
    """`inner` on the factors, exact in the products."""
    wrapped = with_folded_part(inner)

    def collect(fold: FedExFold, update: Update) -> FedExFold:
        change = plain_factors(update.change)
        return FedExFold(
            fold.before,
            fold.changes.plus(change, update.weight),
            fold.products.plus(add(fold.before, change), update.weight),
            inner.add(fold.inner, update),
        )

    def finish(state: ServerState, fold: FedExFold, round: Round) -> ServerState:
        moved = inner.finish(state, fold.inner, round)
        mean = add(fold.before, fold.changes.mean(like=fold.before))
        exact = (fold.products.factors(), 1 / fold.products.weight)
        folded = fold_in(state, [exact, (mean, -1.0)])
        return ServerState(moved.adapter, {**moved.memory, FOLDED: folded}, moved.metrics)

    return wrapped._replace(
        start=lambda state, round: FedExFold(
            state.adapter, no_sum(state.adapter), ProductSum(), inner.start(state, round)
        ),
        add=collect,
        finish=finish,
    )
