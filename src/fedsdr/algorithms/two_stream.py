"""FedSDR: the transform that gives any algorithm a private smoothing stream.

arXiv 2605.18028, Sec. method. In round t, client k, starting from the global R^t:

1. smooth:  S <- argmin E_{D_dist} -log p_{R,S}(y~ | c, x), R frozen
2. rectify: R <- argmin E_{D_raw}  -log p_{R,S}(y  | c, x), S frozen
3. upload dR_k = R_k - R^t; S stays.

Stages 2 and 3, and the whole server half, are the inner algorithm's: it trains what it takes for
its only adapter, and this transform puts S beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from fedsdr.adapters import Adapter, Private
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Personal,
    Round,
    Schedule,
    Stage,
    Update,
)
from fedsdr.metrics import Mean
from fedsdr.products import product_change, product_cosine, product_norm

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

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        r = inner.personal(shared, state)
        smoothed = smooth(r, state.private.get(SMOOTHING), fit, options)
        conflicts: dict[str, Mean] = {}

        def rectify(stage: Stage) -> Fitted:
            fitted = fit(replace(stage, private=smoothed.after, alone=options.alone))
            conflicts.update(conflict(fitted, smoothed))
            return fitted

        update, state = inner.client(shared, state, rectify, round)
        metrics = {**update.metrics, "loss/smooth": smoothed.loss, **conflicts}
        return replace(update, metrics=metrics), state.keep(SMOOTHING, smoothed.after)

    def personal(shared: Adapter, state: ClientState) -> Personal:
        return inner.personal(shared, state)._replace(private=state.private.get(SMOOTHING))

    return inner._replace(client=client, personal=personal)


def smooth(r: Personal, s: Private | None, fit: Fit, options: Smoothing) -> Fitted:
    """Stage 1: S learns the rewrites, R frozen beside it (joint) or off (base)."""
    joint = options.context == "joint"
    return fit(
        Stage(
            "smooth",
            trains="S",
            schedule=options.schedule,
            shared=r.shared if joint else None,
            own=r.own if joint else None,
            private=s if options.state == "keep" else None,
            targets="distilled",
        )
    )


def conflict(rectified: Fitted, smoothed: Fitted) -> dict[str, Mean]:
    """How the two streams' weight updates of one round relate: their cosine, and the norms.

    A cosine below zero says that each stream undoes what the other does. Numbers only: the
    tensors of the streams stay wrapped.
    """

    def cosine(r_update: Adapter) -> float:
        return _number(smoothed, lambda s_update: product_cosine(s_update, r_update))

    return {
        "conflict/cosine": Mean(_number(rectified, cosine), 1),
        "norm/R": Mean(rectified.after.number(product_norm), 1),
        "norm/S": Mean(smoothed.after.number(product_norm), 1),
    }


def _number(fitted: Fitted, measure: Callable[[Adapter], float]) -> float:
    """`measure` of the change of the trained stream's weight."""

    def of_before(before: Adapter) -> float:
        return fitted.after.number(lambda after: measure(product_change(before, after)))

    return fitted.before.number(of_before)
