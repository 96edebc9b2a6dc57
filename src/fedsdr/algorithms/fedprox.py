"""FedProx: a pull towards the global adapter keeps clients from drifting apart.

Li et al. 2020 (arXiv 1812.06127), Algorithm 2: the local objective is
F_k(w) + (mu / 2) |w - w^t|^2. With mu = 0 it is FedAvg.
"""

from typing import Annotated

from pydantic import Field

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Options,
    Pull,
    Round,
    Setup,
    Stage,
    Update,
)
from fedsdr.algorithms.fedavg import client_update, fedavg
from fedsdr.core.adapters import Adapter


class FedProx(Options):
    """The proximal term."""

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """The strength of the pull towards the global adapter."""


def fedprox(setup: Setup, options: FedProx) -> Algorithm:
    """FedAvg whose clients are pulled towards the global adapter."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        pull = Pull(shared, options.mu)
        fitted = fit(Stage("rectify", "R", setup.schedule, shared, pull=pull))
        return client_update(shared, fitted), state

    return fedavg(setup)._replace(client=client)
