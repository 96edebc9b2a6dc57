"""FedDyn: each client's objective is bent so that its optimum becomes the federation's.

Acar et al. 2021 (arXiv 2111.04263), Algorithm 1. Client k minimises
F_k(w) - <h_k, w> + (alpha / 2) |w - w^t|^2, whose gradient is g - h_k + alpha (w - w^t), and
keeps h_k+ = h_k - alpha (w_k - w^t), the gradient of F_k at its optimum. The server keeps

    h <- h - alpha sum_{k in S} (n_k / n) (w_k - w^t),   w^{t+1} = mean_{k in S} w_k - h / alpha.

Weights n_k / n are the objective's; the paper's are equal. So h = sum_k (n_k / n) h_k over all
clients after every round; when a client joins, n grows, and the old terms shrink. Local optima are
taken for reached, as there: a few steps of AdamW reach them only in part.
"""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Options,
    Pull,
    Round,
    ServerState,
    Setup,
    Stage,
    Update,
)
from fedsdr.algorithms.fedavg import client_update, fedavg
from fedsdr.core.adapters import Adapter, WeightedSum, add, scale, subtract, zeros_like

GRADIENT = "h"


class FedDyn(Options):
    """The dynamic regulariser."""

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """The strength of the pull towards the global adapter."""


def feddyn(setup: Setup, options: FedDyn) -> Algorithm:
    """FedAvg with dynamic regularisation."""
    alpha = options.alpha

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        h = state.recall(GRADIENT, like=shared)
        pull, shift = Pull(shared, alpha), scale(h, -1)
        fitted = fit(Stage("rectify", "R", setup.schedule, shared, pull=pull, shift=shift))
        update = client_update(shared, fitted)
        return update, seen(state, state, update.change)

    def seen(before: ClientState, after: ClientState, change: Adapter) -> ClientState:
        h = before.recall(GRADIENT, like=change)
        return after.remember(GRADIENT, subtract(h, scale(change, alpha)))

    def finish(state: ServerState, fold: WeightedSum, round: Round) -> ServerState:
        mean = fold.mean(like=state.adapter)
        share = fold.weight / round.population
        h = subtract(state.memory[GRADIENT], scale(mean, alpha * share))
        adapter = subtract(add(state.adapter, mean), scale(h, 1 / alpha))
        return ServerState(adapter, {**state.memory, GRADIENT: h})

    def rescaled(state: ServerState, factor: float) -> ServerState:
        h = scale(state.memory[GRADIENT], factor)
        return replace(state, memory={**state.memory, GRADIENT: h})

    return fedavg(setup)._replace(
        init=lambda first: ServerState(first, {GRADIENT: zeros_like(first)}),
        client=client,
        finish=finish,
        rescaled=rescaled,
        seen=seen,
    )
