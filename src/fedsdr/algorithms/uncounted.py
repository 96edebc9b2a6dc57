"""Clients that do not tell how many records they have: all weigh the same.

Means are told without their weights too, which count tokens.
"""

from dataclasses import replace

from fedsdr.adapters import Adapter
from fedsdr.algorithms.contract import Algorithm, ClientState, Fit, Round, Update
from fedsdr.metrics import unweighted


def uncounted(inner: Algorithm) -> Algorithm:
    """`inner`, whose updates weigh 1: its mean is over clients, not over their records."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        update, state = inner.client(shared, state, fit, round)
        return replace(update, weight=1.0, metrics=unweighted(update.metrics)), state

    return inner._replace(client=client)
