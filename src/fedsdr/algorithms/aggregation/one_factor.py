"""Train and send one of the two factors: what FFA-LoRA and RoLoRA have in common.

With one factor equal on all clients, the mean of products is the product of means:
mean_k(B_k A) = mean_k(B_k) A. So the plain mean of the other one is exact.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Round,
    ServerState,
    Stage,
    Update,
)
from fedsdr.core.adapters import Adapter, factor_of, plain_factors, select_tensors

Factor = Literal["A", "B"]


def one_factor(inner: Algorithm, choose: Callable[[int], Factor]) -> Algorithm:
    """`inner` on the factor that `choose(round number)` names; the other one is frozen.

    `inner` sees that factor alone: its moments and control variates of the other one rest too.
    """

    def part(a: Adapter, round: Round) -> Adapter:
        return select_tensors(a, lambda key: factor_of(key) == choose(round.number))

    def view(state: ServerState, round: Round) -> ServerState:
        memory = {name: part(tensors, round) for name, tensors in state.memory.items()}
        return ServerState(part(state.adapter, round), memory)

    def client(
        sent: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        trained = part(sent, round)
        frozen = select_tensors(plain_factors(sent), lambda key: key not in trained)

        def fit_one(stage: Stage) -> Fitted:
            whole = {**frozen, **(stage.shared or {})}
            fitted = fit(replace(stage, shared=whole, factors=choose(round.number)))
            return replace(
                fitted, shared=part(fitted.shared, round), gradient=part(fitted.gradient, round)
            )

        return inner.client(trained, state, fit_one, round)

    def finish(state: ServerState, fold: Any, round: Round) -> ServerState:
        moved = inner.finish(view(state, round), fold, round)
        memory = {name: {**state.memory[name], **new} for name, new in moved.memory.items()}
        return ServerState({**state.adapter, **moved.adapter}, memory, moved.metrics)

    return inner._replace(
        client=client,
        start=lambda state, round: inner.start(view(state, round), round),
        finish=finish,
        uploads=lambda state, round: inner.uploads(view(state, round), round),
    )
