"""FedAvg: clients train from the global adapter, the server takes the mean of the changes.

McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, on LoRA factors as FedIT does
(arXiv 2305.05644).
"""

from typing import NamedTuple

import torch

from fedsdr.adapters import Adapter, add, check_same_keys, subtract, zeros_like
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


class WeightedSum(NamedTuple):
    """sum_k n_k dR_k in float64 and sum_k n_k: constant in the number of clients."""

    total: Adapter
    weight: float


def start_sum(state: ServerState) -> WeightedSum:
    return WeightedSum(zeros_like(state.adapter, torch.float64), 0.0)


def add_weighted(fold: WeightedSum, update: Update) -> WeightedSum:
    check_same_keys(fold.total, update.change, who="update")
    total = {
        key: fold.total[key] + update.change[key].double() * update.weight for key in fold.total
    }
    return WeightedSum(total, fold.weight + update.weight)


def mean_change(fold: WeightedSum, like: Adapter) -> Adapter:
    """sum_k (n_k / n) dR_k, in the dtype of `like`."""
    if not fold.weight > 0:
        raise ValueError("no update to aggregate: the round had no participants")
    return {key: (fold.total[key] / fold.weight).to(like[key].dtype) for key in like}


def fedavg(schedule: Schedule) -> Algorithm:
    """`schedule`: each client's local training in a round."""

    def client(shared: Adapter, state: ClientState, fit: Fit) -> tuple[Update, ClientState]:
        fitted = fit(Stage("rectify", trains="shared", schedule=schedule, shared=shared))
        change = subtract(fitted.shared, shared)
        return Update(change, fitted.examples, {"loss/rectify": fitted.loss}), state

    def finish(state: ServerState, fold: WeightedSum) -> ServerState:
        """R^{t+1} = R^t + sum_k (n_k / n) dR_k (arXiv 2605.18028, Sec. method)."""
        return ServerState(add(state.adapter, mean_change(fold, state.adapter)), state.memory)

    return Algorithm(
        init=ServerState,
        broadcast=lambda state: state.adapter,
        client=client,
        start=start_sum,
        add=add_weighted,
        finish=finish,
        uploads=lambda state: state.adapter,
        personal=lambda shared, state: Personal(shared, None),
    )
