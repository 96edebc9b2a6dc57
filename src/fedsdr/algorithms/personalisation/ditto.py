"""Ditto: each client also trains a model of its own, pulled towards the global one.

Li et al. 2021 (arXiv 2012.04221), Algorithm 1: v_k <- argmin F_k(v) + (lambda / 2) |v - w^t|^2,
from the client's last v_k, at first from w^t. v_k takes the place of R in the client's model; a
private stream S of a wrapping algorithm stays in it.
"""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedsdr.algorithms.contract import (
    CROSS_ENTROPY,
    Algorithm,
    ClientState,
    Fit,
    Loss,
    Options,
    Personal,
    Pull,
    Round,
    Schedule,
    Stage,
    Targets,
    Update,
)
from fedsdr.core.adapters import Adapter, plain_factors

DITTO_ADAPTER = "ditto"


class Ditto(Options):
    """How personal adapters are trained."""

    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """lambda, the strength of the pull towards the global adapter; 0 is training alone."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """Optimiser steps in a round; by default as many as for the global adapter."""


def ditto(
    inner: Algorithm,
    options: Ditto,
    schedule: Schedule,
    targets: Targets = "raw",
    loss: Loss = CROSS_ENTROPY,
) -> Algorithm:
    """`inner` with a personal adapter for each client."""
    mine = replace(schedule, steps=options.steps or schedule.steps)

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        update, state = inner.client(shared, state, fit, round)
        start = inner.personal(shared, state)
        pull = Pull(plain_factors(start.shared or {}), options.strength)
        v = state.private.get(DITTO_ADAPTER)
        first = v is None
        stage = Stage(
            "personal",
            trains="R",
            schedule=mine,
            shared=start.shared if first else None,
            own=start.own if first else v,
            private=start.private,
            targets=targets,
            loss=loss,
            pull=pull,
        )
        fitted = fit(stage)
        metrics = {**update.metrics, "loss/personal": fitted.loss}
        return replace(update, metrics=metrics), state.keep(DITTO_ADAPTER, fitted.after)

    def personal(shared: Adapter, state: ClientState) -> Personal:
        other, v = inner.personal(shared, state), state.private.get(DITTO_ADAPTER)
        return other if v is None else Personal(None, v, other.private)

    return inner._replace(client=client, personal=personal)
