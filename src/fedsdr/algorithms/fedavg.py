"""FedAvg: clients train from the global adapter, the server takes the mean of the changes.

McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, on LoRA factors as FedIT does
(arXiv 2305.05644).
"""

from fedsdr.adapters import Adapter, WeightedSum, add, no_sum, subtract
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Personal,
    Schedule,
    ServerState,
    Stage,
    Update,
)


def fedavg(schedule: Schedule) -> Algorithm:
    """`schedule`: each client's local training in a round."""

    def client(shared: Adapter, state: ClientState, fit: Fit) -> tuple[Update, ClientState]:
        fitted = fit(Stage("rectify", trains="shared", schedule=schedule, shared=shared))
        change = subtract(fitted.shared, shared)
        return Update(change, fitted.examples, {"loss/rectify": fitted.loss}), state

    def finish(state: ServerState, fold: WeightedSum) -> ServerState:
        """R^{t+1} = R^t + sum_k (n_k / n) dR_k (arXiv 2605.18028, Sec. method)."""
        return ServerState(add(state.adapter, fold.mean(like=state.adapter)), state.memory)

    return Algorithm(
        init=ServerState,
        broadcast=lambda state: state.adapter,
        client=client,
        start=lambda state: no_sum(state.adapter),
        add=lambda fold, update: fold.plus(update.change, update.weight),
        finish=finish,
        uploads=lambda state: state.adapter,
        personal=lambda shared, state: Personal(shared, None),
    )
