"""FedSDR: the transform that gives any algorithm a private smoothing stream.

arXiv 2605.18028, Sec. method. In round t, client k, starting from the global R^t:

1. smooth:  S <- argmin E_{D_dist} -log p_{R,S}(y~ | c, x), R frozen
2. rectify: R <- argmin E_{D_raw}  -log p_{R,S}(y  | c, x), S frozen
3. upload dR_k = R_k - R^t; S stays.

Stages 2 and 3, and the whole server half, are the inner algorithm's: it trains what it takes for
its only adapter, and this transform puts S beside it.
"""

from dataclasses import dataclass, replace
from typing import Literal

from fedsdr.adapters import Adapter, Private, add, product_change, product_cosine, product_norm
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Personal,
    Schedule,
    Stage,
    Update,
)
from fedsdr.metrics import Mean

SMOOTHING = "smoothing"


@dataclass(frozen=True)
class Smoothing:
    """The choices that the paper's sources leave open (docs/findings.md has the measurements).

    state: S is kept from round to round, or reset before each.
    context: what S learns on top of, W0 + R ("joint", the equation as written) or W0 ("base").
    alone: share of stage 2's batches in which S is off, so that R learns to stand alone.
    """

    schedule: Schedule
    state: Literal["keep", "reset"]
    context: Literal["joint", "base"]
    alone: float


def two_stream(inner: Algorithm, options: Smoothing) -> Algorithm:
    """`inner` on raw data with a private stream S trained on rewrites beside it."""

    def client(shared: Adapter, state: ClientState, fit: Fit) -> tuple[Update, ClientState]:
        smoothed = smooth(shared, state.private.get(SMOOTHING), fit, options)
        s = smoothed.private
        assert s is not None
        assert smoothed.before is not None

        def rectify(stage: Stage) -> Fitted:
            return fit(replace(stage, private=s, alone=options.alone))

        update, state = inner.client(shared, state, rectify)
        metrics = {
            **update.metrics,
            "loss/smooth": smoothed.loss,
            **conflict(shared, update.change, smoothed.before, s),
        }
        kept = {**state.private, SMOOTHING: s}
        return replace(update, metrics=metrics), ClientState(kept)

    return inner._replace(
        client=client,
        personal=lambda shared, state: Personal(shared, state.private.get(SMOOTHING)),
    )


def smooth(shared: Adapter, s: Private | None, fit: Fit, options: Smoothing) -> Fitted:
    """Stage 1: S learns the rewrites, R frozen beside it (joint) or off (base)."""
    return fit(
        Stage(
            "smooth",
            trains="private",
            schedule=options.schedule,
            shared=shared if options.context == "joint" else None,
            private=s if options.state == "keep" else None,
            targets="distilled",
        )
    )


def conflict(
    shared: Adapter, change: Adapter, s_before: Private, s_after: Private
) -> dict[str, Mean]:
    """How the two streams' weight updates of one round relate: their cosine, and the norms.

    A cosine below zero says that each stream undoes what the other does. Numbers only: the
    tensors of S stay wrapped.
    """
    shared_after = add(shared, change)
    r_update = product_change(shared, shared_after)

    def s_update_cosine(before: Adapter) -> float:
        return s_after.number(lambda after: product_cosine(product_change(before, after), r_update))

    return {
        "conflict/cosine": Mean(s_before.number(s_update_cosine), 1),
        "norm/R": Mean(product_norm(shared_after), 1),
        "norm/S": Mean(s_after.number(product_norm), 1),
    }
