"""Local-only training, the baseline without a federation: nothing is sent, nothing aggregated."""

from fedsdr.adapters import Adapter
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

OWN = "own"


def local(schedule: Schedule) -> Algorithm:
    """Each client trains an adapter of its own on the base model, round after round."""

    def client(shared: Adapter, state: ClientState, fit: Fit) -> tuple[Update, ClientState]:
        own = state.private.get(OWN)
        fitted = fit(Stage("rectify", trains="private", schedule=schedule, private=own))
        assert fitted.private is not None
        update = Update({}, fitted.examples, {"loss/rectify": fitted.loss})
        return update, ClientState({OWN: fitted.private})

    return Algorithm(
        init=ServerState,
        broadcast=lambda state: {},
        client=client,
        start=lambda state: None,
        add=lambda fold, update: None,
        finish=lambda state, fold: state,
        uploads=lambda state: {},
        personal=lambda shared, state: Personal(None, state.private.get(OWN)),
    )
