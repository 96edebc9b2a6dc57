"""Local-only training, the baseline without a federation: nothing is sent, nothing aggregated."""

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Personal,
    Round,
    ServerState,
    Setup,
    Stage,
    Update,
)
from fedsdr.core.adapters import Adapter

OWN_ADAPTER = "own"


def local(setup: Setup) -> Algorithm:
    """Each client trains an R of its own on the base model, round after round."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        own = state.private.get(OWN_ADAPTER)
        fitted = fit(Stage("rectify", trains="R", schedule=setup.schedule, own=own))
        update = Update({}, fitted.examples, {"loss/rectify": fitted.loss})
        return update, state.keep(OWN_ADAPTER, fitted.after)

    return Algorithm(
        init=ServerState,
        broadcast=lambda state: {},
        deployed=lambda state: {},
        client=client,
        start=lambda state, round: None,
        add=lambda fold, update: None,
        finish=lambda state, fold, round: state,
        uploads=lambda state, round: {},
        personal=lambda shared, state: Personal(None, own=state.private.get(OWN_ADAPTER)),
    )
