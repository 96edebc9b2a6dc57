"""FedDPA: a dual adapter, a global and a local one.

Yang et al. 2024 (arXiv 2403.19211), the iterative form (FedDPA-T): in each round the client trains
its local adapter on W0 + R + P with the received R frozen, and R without it. P goes on from round
to round; the client's model is W0 + R + P. In an algorithm with a private stream S, P starts from
it and takes its place.

Left out: the weight between the two adapters that the paper draws from the similarity of each
query to the training data; both are simply on.
"""

from dataclasses import replace

from fedsdr.algorithms.contract import (
    CROSS_ENTROPY,
    Algorithm,
    ClientState,
    Fit,
    Loss,
    NoOptions,
    Personal,
    Round,
    Schedule,
    Stage,
    Targets,
    Update,
)
from fedsdr.core.adapters import Adapter

FEDDPA_ADAPTER = "feddpa"


def feddpa(
    inner: Algorithm,
    options: NoOptions,
    schedule: Schedule,
    targets: Targets = "raw",
    loss: Loss = CROSS_ENTROPY,
) -> Algorithm:
    """`inner` with an additional local adapter for each client."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        r = inner.personal(shared, state)
        update, state = inner.client(shared, state, fit, round)
        stream = inner.personal(shared, state).private
        p = state.private.get(FEDDPA_ADAPTER, stream)
        stage = Stage(
            "personal", "S", schedule, r.shared, r.own, private=p, targets=targets, loss=loss
        )
        fitted = fit(stage)
        metrics = {**update.metrics, "loss/personal": fitted.loss}
        return replace(update, metrics=metrics), state.keep(FEDDPA_ADAPTER, fitted.after)

    def personal(shared: Adapter, state: ClientState) -> Personal:
        other = inner.personal(shared, state)
        return other._replace(private=state.private.get(FEDDPA_ADAPTER, other.private))

    return inner._replace(client=client, personal=personal)
