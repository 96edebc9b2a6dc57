"""Bounds on what an upload may do or disclose, across organisations: its norm, and its weight."""

from dataclasses import replace
from typing import Any

from fedsdr.algorithms.contract import Algorithm, ClientState, Fit, Round, Update
from fedsdr.core.adapters import Adapter, norm
from fedsdr.core.metrics import drop_weights


def with_norm_limit(inner: Algorithm, most: float) -> Algorithm:
    """`inner`, whose server refuses (rather than scales) updates whose Euclidean norm, once they
    are decoded, exceeds `most`, by raising `ValueError`."""

    def collect(fold: Any, update: Update) -> Any:
        if norm(update.change) > most:  # the message is logged, and the norm itself may be private
            raise ValueError(f"its update is longer than deployment.max_norm = {most:g}")
        return inner.add(fold, update)

    return inner._replace(add=collect)


def with_equal_weights(inner: Algorithm) -> Algorithm:
    """`inner`, whose clients do not disclose how many records or tokens they have: every update and
    every metric weighs 1, so that means are over clients."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        update, state = inner.client(shared, state, fit, round)
        return replace(update, weight=1.0, metrics=drop_weights(update.metrics)), state

    return inner._replace(client=client)
