"""FedEx-LoRA: average the factors, and fold what that misses into the base.

Singhal et al. 2025 (arXiv 2410.09432), Eq. 6: the residual sum_k p_k B_k A_k - B A, with B and A
the mean factors, joins the frozen model. So the deployed model is the exact mean of products.
"""

from typing import Any, NamedTuple

from fedsdr.adapters import FOLDED, Adapter, WeightedSum, add, factors, no_sum
from fedsdr.algorithms.aggregation.folding import fold_in, folding
from fedsdr.algorithms.contract import Algorithm, NoOptions, Round, ServerState, Update
from fedsdr.products import ProductSum


class Fold(NamedTuple):
    before: Adapter
    changes: WeightedSum
    products: ProductSum
    inner: Any


def fedex_lora(inner: Algorithm, options: NoOptions) -> Algorithm:
    """`inner` on the factors, exact in the products."""
    beside = folding(inner)

    def collect(fold: Fold, update: Update) -> Fold:
        change = factors(update.change)
        return Fold(
            fold.before,
            fold.changes.plus(change, update.weight),
            fold.products.plus(add(fold.before, change), update.weight),
            inner.add(fold.inner, update),
        )

    def finish(state: ServerState, fold: Fold, round: Round) -> ServerState:
        moved = inner.finish(state, fold.inner, round)
        mean = add(fold.before, fold.changes.mean(like=fold.before))
        exact = (fold.products.factors(), 1 / fold.products.weight)
        folded = fold_in(state, [exact, (mean, -1.0)])
        return ServerState(moved.adapter, {**moved.memory, FOLDED: folded}, moved.metrics)

    return beside._replace(
        start=lambda state, round: Fold(
            state.adapter, no_sum(state.adapter), ProductSum(), inner.start(state, round)
        ),
        add=collect,
        finish=finish,
    )
