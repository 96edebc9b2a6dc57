"""FedRot-LoRA: turn each client's factors towards the global ones before they are averaged.

arXiv 2602.23638: B Q and Q^T A are the same weights for every orthogonal Q, but their means are
not. Each client solves the orthogonal Procrustes problem against the factors that it was sent, on
A in even rounds and on B in odd ones, and turns both factors by the solution. In round 1 all
clients start from one A and B is zero: nothing to turn.
"""

from dataclasses import replace

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    NoOptions,
    Round,
    Stage,
    Update,
)
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, Adapter, layer_paths, plain_factors
from fedsdr.core.products import procrustes_rotation, rotate_factors


def fedrot_lora(inner: Algorithm, options: NoOptions) -> Algorithm:
    """`inner` on factors that are turned towards the global ones."""

    def client(
        sent: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        def fit_and_turn(stage: Stage) -> Fitted:
            fitted = fit(stage)
            if round.number == 1:
                return fitted
            turned = align_factors(
                fitted.shared, plain_factors(sent), on="B" if round.number % 2 else "A"
            )
            return replace(fitted, shared=turned)

        return inner.client(sent, state, fit_and_turn, round)

    return inner._replace(client=client)


def align_factors(a: Adapter, reference: Adapter, on: str) -> Adapter:
    """B Q, Q^T A with the Q that brings the factor `on` nearest to the reference's, by layer."""
    turns = {}
    for path in layer_paths(a):
        key = path + (A_SUFFIX if on == "A" else B_SUFFIX)
        mine, goal = a[key].double(), reference[key].double()
        turns[path] = procrustes_rotation(mine @ goal.T if on == "A" else mine.T @ goal)
    return rotate_factors(a, turns)
