"""Flower's strategies, as an independent reference for what our server halves compute."""

import logging
from collections.abc import Sequence

import numpy as np
from flwr.common import (
    Code,
    FitRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.strategy import Strategy

from fedsdr.core.adapters import Adapter

logging.getLogger("flwr").setLevel(logging.ERROR)  # its advice on metrics


def arrays(adapter: Adapter) -> list[np.ndarray]:
    """The tensors in the order of their names: Flower knows parameters by position."""
    return [adapter[key].numpy() for key in sorted(adapter)]


def aggregate(
    strategy: Strategy,
    adapters_with_counts: Sequence[tuple[Adapter, int]],
    server_round: int = 1,
) -> list[np.ndarray]:
    """What `strategy` makes of the clients' adapters and numbers of records, ordered by name.

    Strategies with a memory (FedAvgM, FedAdam, ...) are called once a round, in order.
    """
    results = [
        (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays(adapter)), count, {}))
        for adapter, count in adapters_with_counts
    ]
    parameters, _ = strategy.aggregate_fit(server_round, results, [])
    return parameters_to_ndarrays(parameters)
