"""SCAFFOLD: control variates correct each client's gradient for its drift.

Karimireddy et al. 2020 (arXiv 1910.06378), Algorithm 1. The server keeps c, a client c_k, zero at
first; a client steps along g - c_k + c and sends both its changes, dw_k and dc_k.

Which variant. The paper's option II, c_k+ = c_k - c + (x - y) / (K lr), takes a client's total
movement for a sum of gradients. That holds under SGD and not under AdamW, whose steps are rescaled
gradients. But under SGD option II *is* the mean of the uncorrected gradients along the local path:
x - y = lr sum(g_i - c_k + c). So we take that mean itself, which any local optimiser has:

    c_k+ = (1 / K) sum_i g_k(y_i)

The correction enters before clipping and AdamW. Means are weighted by records, n_k / n, as the
objective is, so that c = sum_k (n_k / n) c_k over all clients after every round, whoever took
part; uniform weights, the paper's case, are that with equal n_k. When a client joins, n grows,
and the old terms of the sum shrink in proportion.
"""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Options,
    Personal,
    Round,
    ServerState,
    Setup,
    Stage,
    Update,
)
from fedsdr.algorithms.fedavg import client_update, fedavg
from fedsdr.core.adapters import (
    Adapter,
    WeightedSum,
    add,
    add_prefix,
    no_sum,
    plain_factors,
    scale,
    strip_prefix,
    subtract,
    zeros_like,
)

CONTROL = "control/"


class Scaffold(Options):
    """The server's step."""

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The paper's global learning rate: the server's step along the mean change."""


def scaffold(setup: Setup, options: Scaffold) -> Algorithm:
    """FedAvg with control variates on both sides."""

    def with_control(state: ServerState) -> Adapter:
        return {**state.adapter, **add_prefix(state.memory[CONTROL], CONTROL)}

    def client(
        sent: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        shared, c = plain_factors(sent), strip_prefix(sent, CONTROL)
        mine = state.recall(CONTROL, like=c)
        shift = subtract(c, mine)
        stage = Stage("rectify", "R", setup.schedule, shared, shift=shift, mean_gradient=True)
        fitted = fit(stage)
        update = client_update(shared, fitted)
        moved = add_prefix(subtract(fitted.gradient, mine), CONTROL)
        return (
            Update({**update.change, **moved}, update.weight, update.metrics),
            state.remember(CONTROL, fitted.gradient),
        )

    def finish(state: ServerState, fold: WeightedSum, round: Round) -> ServerState:
        mean = fold.mean(like=with_control(state))
        share = fold.weight / round.population
        control = add(state.memory[CONTROL], scale(strip_prefix(mean, CONTROL), share))
        adapter = add(state.adapter, scale(plain_factors(mean), options.lr))
        return ServerState(adapter, {**state.memory, CONTROL: control})

    def rescaled(state: ServerState, factor: float) -> ServerState:
        control = scale(state.memory[CONTROL], factor)
        return replace(state, memory={**state.memory, CONTROL: control})

    def seen(before: ClientState, after: ClientState, change: Adapter) -> ClientState:
        moved = strip_prefix(change, CONTROL)
        return after.remember(CONTROL, add(before.recall(CONTROL, like=moved), moved))

    return fedavg(setup)._replace(
        init=lambda first: ServerState(first, {CONTROL: zeros_like(first)}),
        broadcast=with_control,
        client=client,
        start=lambda state, round: no_sum(with_control(state)),
        finish=finish,
        uploads=lambda state, round: with_control(state),
        personal=lambda sent, state: Personal(plain_factors(sent)),
        rescaled=rescaled,
        seen=seen,
    )
