"""An algorithm whose clients train other stages than it asks for."""

from collections.abc import Callable

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Round,
    Stage,
    Update,
)
from fedsdr.core.adapters import Adapter


def with_stages(inner: Algorithm, change: Callable[[Stage], Stage]) -> Algorithm:
    """`inner`, each of whose stages is trained as `change` gives it."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        def fit_changed(stage: Stage) -> Fitted:
            return fit(change(stage))

        return inner.client(shared, state, fit_changed, round)

    return inner._replace(client=client)
