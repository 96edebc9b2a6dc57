"""Share some tensors of the adapter and keep the others: FedSA-LoRA and FedPer.

Clients train the whole of R. What the server does not hold stays with the client from round to
round, as private as LoRA-S; so there is no one global model, only the clients' own.
"""

from collections.abc import Callable
from dataclasses import replace

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Personal,
    Round,
    Stage,
    Update,
)
from fedsdr.core.adapters import Adapter

OWN_PART = "own"


def partly_shared(inner: Algorithm, shared_part: Callable[[Adapter], Adapter]) -> Algorithm:
    """`inner` on the part of the adapter that `shared_part` selects."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        own = state.private.get(OWN_PART)
        fits: list[Fitted] = []

        def fit_whole(stage: Stage) -> Fitted:
            fits.append(fit(replace(stage, own=own)))
            return fits[-1]

        update, state = inner.client(shared, state, fit_whole, round)
        kept = fits[-1].own
        assert kept is not None
        return update, state.keep(OWN_PART, kept)

    def personal(shared: Adapter, state: ClientState) -> Personal:
        return inner.personal(shared, state)._replace(own=state.private.get(OWN_PART))

    return inner._replace(
        init=lambda first: inner.init(shared_part(first)),
        deployed=lambda state: {},
        client=client,
        personal=personal,
    )
