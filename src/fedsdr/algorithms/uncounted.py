"""Clients that do not tell how many records they have: all weigh the same.

Means are told without their weights too, which count tokens.
"""

from dataclasses import replace

from fedsdr.algorithms.contract import Algorithm, ClientState, Fit, Round, Update
from fedsdr.core.adapters import Adapter
from fedsdr.core.metrics import drop_weights


def with_equal_weights(inner: Algorithm) -> Algorithm:
    """`inner`, whose updates weigh 1: its mean is over clients, not over their records."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        update, state = inner.client(shared, state, fit, round)
        return replace(update, weight=1.0, metrics=drop_weights(update.metrics)), state

    return inner._replace(client=client)
