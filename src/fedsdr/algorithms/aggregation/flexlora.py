"""FlexLoRA: average the products, then take the nearest adapter of the federation's rank.

Bai et al. 2024 (arXiv 2402.11505), Sec. 3: W = sum_k (n_k / n) B_k A_k = U s V^T, and
B = U_r s_r, A = V_r^T, the best approximation of rank r. Clients may have smaller ranks: each
starts from the best approximation of its own.

Factors are known up to a rotation, B Q and Q^T A. We take the one nearest to the last round's, so
that a server's momentum, or a client's control variate, still means something.
"""

from collections.abc import Collection
from typing import NamedTuple

from fedsdr.algorithms.aggregation.ranks import SMALLER, rank_prefix, starting_point
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    NoOptions,
    Personal,
    Round,
    ServerState,
    Update,
)
from fedsdr.core.adapters import (
    A_SUFFIX,
    B_SUFFIX,
    Adapter,
    WeightedSum,
    add,
    add_prefix,
    layer_paths,
    no_sum,
    plain_factors,
    rank_of,
    resize_rank,
    select_tensors,
    strip_prefix,
    subtract,
)
from fedsdr.core.products import (
    ProductSum,
    procrustes_rotation,
    rotate_factors,
    stack_components,
    truncate_rank,
)


class FlexLoRAFold(NamedTuple):
    """products: sum of n_k B_k A_k; others: the means of the other tensors that are sent."""

    starts: dict[int, Adapter]
    products: ProductSum
    others: WeightedSum


def flexlora(inner: Algorithm, options: NoOptions, ranks: Collection[int] = ()) -> Algorithm:
    """`inner` with the mean of products; `ranks`: those of clients that have smaller ones."""

    def with_starts(state: ServerState) -> ServerState:
        """Each smaller rank's own starting point: client and server must mean the same one."""
        starts = {rank_prefix(rank): reduce_rank(state.adapter, rank) for rank in ranks}
        return ServerState(state.adapter, {**state.memory, **starts}, state.metrics)

    def broadcast(state: ServerState) -> Adapter:
        sent = inner.broadcast(state)
        for rank in ranks:
            sent = {**sent, **add_prefix(state.memory[rank_prefix(rank)], rank_prefix(rank))}
        return sent

    def client(
        sent: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        return inner.client(received(sent, state), state, fit, round)

    def received(sent: Adapter, state: ClientState) -> Adapter:
        if state.rank in ranks:
            return strip_prefix(sent, rank_prefix(state.rank))
        return select_tensors(sent, lambda key: not key.startswith(SMALLER))

    def start(state: ServerState, round: Round) -> FlexLoRAFold:
        starts = {r: starting_point(state, r) for r in (*ranks, rank_of(state.adapter))}
        others = select_tensors(inner.uploads(state, round), lambda key: "/" in key)
        return FlexLoRAFold(starts, ProductSum(), no_sum(others))

    def collect(fold: FlexLoRAFold, update: Update) -> FlexLoRAFold:
        change = plain_factors(update.change)
        trained = add(fold.starts[rank_of(change)], change)
        others = select_tensors(update.change, lambda key: "/" in key)
        return FlexLoRAFold(
            fold.starts,
            fold.products.plus(trained, update.weight),
            fold.others.plus(others, update.weight),
        )

    def finish(state: ServerState, fold: FlexLoRAFold, round: Round) -> ServerState:
        others = fold.others.mean(like=inner.uploads(state, round))
        change = subtract(nearest_factors(fold.products, state.adapter), state.adapter)
        mean = Update({**change, **others}, fold.products.weight)
        moved = inner.finish(state, inner.add(inner.start(state, round), mean), round)
        return with_starts(moved)

    def personal(sent: Adapter, state: ClientState) -> Personal:
        return inner.personal(received(sent, state), state)

    return inner._replace(
        init=lambda first: with_starts(inner.init(first)),
        broadcast=broadcast,
        client=client,
        start=start,
        add=collect,
        finish=finish,
        personal=personal,
        ranks=frozenset(ranks),
    )


def reduce_rank(a: Adapter, rank: int) -> Adapter:
    """The best adapter of a smaller rank; the first components while B is still zero."""
    if not any(a[path + B_SUFFIX].any() for path in layer_paths(a)):
        return resize_rank(a, rank)
    return {key: tensor.to(a[key].dtype) for key, tensor in truncate_rank(a, rank).items()}


def nearest_factors(products: ProductSum, current: Adapter) -> Adapter:
    """The mean of products at the rank of `current`, rotated to be nearest to it."""
    # Directions that no client used are filled up with the present ones, at B = 0.
    idle = {key: t if key.endswith(A_SUFFIX) else t * 0 for key, t in current.items()}
    mean = stack_components([(products.factors(), 1 / products.weight), (idle, 1.0)])
    best = truncate_rank(mean, rank_of(current))
    turns = {}
    for path in layer_paths(current):
        a, b = path + A_SUFFIX, path + B_SUFFIX
        turns[path] = procrustes_rotation(
            best[b].T @ current[b].double() + best[a] @ current[a].double().T
        )
    turned = rotate_factors(best, turns)
    return {key: turned[key].to(current[key].dtype) for key in current}
