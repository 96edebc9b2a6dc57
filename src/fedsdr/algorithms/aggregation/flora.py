"""FLoRA: stack the clients' adapters instead of averaging them, fold the stack, start afresh.

Wang et al. 2024 (arXiv 2409.05976), Sec. 4: the stack [B_1 ... B_K] [p_1 A_1; ...; p_K A_K] is
exactly sum_k p_k B_k A_k, for any ranks. It joins the frozen model, and each round trains a fresh
adapter (A random, B zero; here the same for all clients, a smaller rank taking its first rows).
"""

from collections.abc import Collection
from typing import NamedTuple

import torch

from fedsdr.algorithms.aggregation.folding import fold_in, trained_part, with_folded_part
from fedsdr.algorithms.aggregation.ranks import starting_point
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    NoOptions,
    Round,
    ServerState,
    Update,
)
from fedsdr.core import seeds
from fedsdr.core.adapters import FOLDED, Adapter, add, fresh_adapter, rank_of, resize_rank
from fedsdr.core.products import ProductSum


class FLoRAFold(NamedTuple):
    state: ServerState
    products: ProductSum


def flora(inner: Algorithm, options: NoOptions, ranks: Collection[int] = ()) -> Algorithm:
    """The client half of `inner`; `ranks`: those of clients that have smaller ones."""
    wrapped = with_folded_part(inner)

    def client(
        sent: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        mine = sent
        if state.rank in ranks:
            mine = {**sent, **resize_rank(trained_part(sent), state.rank or 0)}
        return wrapped.client(mine, state, fit, round)

    def collect(fold: FLoRAFold, update: Update) -> FLoRAFold:
        trained = add(starting_point(fold.state, rank_of(update.change)), update.change)
        return FLoRAFold(fold.state, fold.products.plus(trained, update.weight))

    def finish(state: ServerState, fold: FLoRAFold, round: Round) -> ServerState:
        if not fold.products.weight > 0:
            raise ValueError(
                f"the weights of a mean must add up to more than 0, not {fold.products.weight}"
            )
        folded = fold_in(state, [(fold.products.factors(), 1 / fold.products.weight)])
        draw: torch.Generator = seeds.seeded_generator(round.seed, "fresh adapter")
        return ServerState(fresh_adapter(state.adapter, draw), {**state.memory, FOLDED: folded})

    return wrapped._replace(
        client=client,
        start=lambda state, round: FLoRAFold(state, ProductSum()),
        add=collect,
        finish=finish,
        ranks=frozenset(ranks),
    )
