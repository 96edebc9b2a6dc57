"""FedAvg: clients train from the global adapter, the server takes the mean of the changes.

McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, on LoRA factors as FedIT does
(arXiv 2305.05644). The other algorithms of this folder are this one with a part exchanged.
"""

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Personal,
    Round,
    ServerState,
    Setup,
    Stage,
    Update,
)
from fedsdr.core.adapters import Adapter, WeightedSum, add, no_sum, subtract


def fedavg(setup: Setup) -> Algorithm:
    """Plain federated averaging."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        fitted = fit(Stage("rectify", trains="R", schedule=setup.schedule, shared=shared))
        return client_update(shared, fitted), state

    def finish(state: ServerState, fold: WeightedSum, round: Round) -> ServerState:
        """R^{t+1} = R^t + sum_k (n_k / n) dR_k (arXiv 2605.18028, Sec. method)."""
        return ServerState(add(state.adapter, fold.mean(like=state.adapter)), state.memory)

    return Algorithm(
        init=ServerState,
        broadcast=lambda state: state.adapter,
        deployed=lambda state: state.adapter,
        client=client,
        start=lambda state, round: no_sum(state.adapter),
        add=lambda fold, update: fold.plus(update.change, update.weight),
        finish=finish,
        uploads=lambda state, round: state.adapter,
        personal=lambda shared, state: Personal(shared),
    )


def client_update(shared: Adapter, fitted: Fitted) -> Update:
    """The update of a client that has trained `shared`: dR_k, n_k and its training loss."""
    change = subtract(fitted.shared, shared)
    return Update(change, fitted.examples, {"loss/rectify": fitted.loss})
