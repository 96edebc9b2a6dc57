"""FedSDR: the transform that gives any algorithm a private smoothing stream.

arXiv 2605.18028, Sec. method. In round t, client k, starting from the global R^t:

1. smooth:  S <- argmin E_{D_dist} -log p_{R,S}(y~ | c, x), R frozen
2. rectify: R <- argmin E_{D_raw}  -log p_{R,S}(y  | c, x), S frozen
3. upload dR_k = R_k - R^t; S stays.

Stages 2 and 3, and the whole server half, are the inner algorithm's: it trains R as its only
adapter, and this transform adds S to the forward pass. Options exchange the order of the stages or
their targets, or consolidate R between 2 and 3: R without S learns what R with S predicts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from fedsdr.algorithms.contract import (
    CROSS_ENTROPY,
    Algorithm,
    ClientState,
    Fit,
    Fitted,
    Loss,
    Personal,
    Round,
    Schedule,
    Stage,
    Targets,
    Update,
)
from fedsdr.core.adapters import Adapter, Private
from fedsdr.core.metrics import Mean
from fedsdr.core.products import product_change, product_cosine, product_norm

SMOOTHING = "smoothing"


@dataclass(frozen=True)
class Smoothing:
    """The choices that the paper's sources leave open (docs/findings.md has the measurements).

    state: what S's training starts from: S as the last round left it ("keep"), the same with its
        weight B A times `decay`, or a fresh one ("reset").
    context: what S learns on top of, W0 + R ("joint", the equation as written) or W0 ("base").
    alone: share of stage 2's batches in which S is off, so that R learns to stand alone.
    order: which stage comes first. In "rectify_first", R is trained with the last round's S frozen
        (without S in the first round); then S, in joint context on top of the R that this client
        has just trained.
    smooth_on, rectify_on: what S and R learn from. smooth_loss: what S learns of it; R's loss is
        that of the stages of the algorithm that this transform is put on.
    consolidation: the stage in which W0 + R learns from W0 + R + S (`fedsdr.training.teacher`);
        none if not given. It has R's gradient corrections, and the S of the rectifying stage.
    consolidate_on: the responses whose tokens condition teacher and student: raw ones are true,
        rewrites are partly false.
    """

    schedule: Schedule
    state: Literal["keep", "reset", "decay"]
    context: Literal["joint", "base"]
    alone: float
    decay: float = 0.5
    order: Literal["smooth_first", "rectify_first"] = "smooth_first"
    smooth_on: Targets = "distilled"
    smooth_loss: Loss = CROSS_ENTROPY
    rectify_on: Targets = "raw"
    consolidation: Schedule | None = None
    consolidate_on: Targets = "raw"


def two_stream(inner: Algorithm, options: Smoothing) -> Algorithm:
    """`inner` on raw data with an additional private stream S, trained on rewrites."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        s = state.private.get(SMOOTHING)
        first = options.order == "smooth_first"
        smoothed = (
            smoothing_stage(inner.personal(shared, state), s, fit, options) if first else None
        )
        done: list[tuple[Stage, Fitted]] = []
        losses: dict[str, Mean] = {}

        def rectify(stage: Stage) -> Fitted:
            s_used = smoothed.after if smoothed else s
            stage = replace(stage, private=s_used, targets=options.rectify_on, alone=options.alone)
            fitted = fit(stage)
            if s_used is not None and options.consolidation is not None:
                after = fit(consolidation_stage(stage, fitted, options.consolidation, options))
                losses["loss/consolidate"] = after.loss
                fitted = replace(fitted, after=after.after, shared=after.shared, own=after.own)
            done.append((stage, fitted))
            return fitted

        update, state = inner.client(shared, state, rectify, round)
        stage, rectified = done[-1]
        smoothed = smoothed or smoothing_stage(stage_result(stage, rectified), s, fit, options)
        conflicts = stream_conflict(rectified, smoothed)
        metrics = {**update.metrics, **losses, "loss/smooth": smoothed.loss, **conflicts}
        return replace(update, metrics=metrics), state.keep(SMOOTHING, smoothed.after)

    def personal(shared: Adapter, state: ClientState) -> Personal:
        return inner.personal(shared, state)._replace(private=state.private.get(SMOOTHING))

    return inner._replace(client=client, personal=personal)


def stage_result(stage: Stage, fitted: Fitted) -> Personal:
    """R after a stage, including its folded part."""
    shared = None if stage.shared is None else {**stage.shared, **fitted.shared}
    return Personal(shared, fitted.own)


def consolidation_stage(
    stage: Stage, rectified: Fitted, schedule: Schedule, options: Smoothing
) -> Stage:
    """The stage after `stage`: R is trained further, with W0 + R + S as its teacher."""
    r = stage_result(stage, rectified)
    return replace(
        stage,
        name="consolidate",
        schedule=schedule,
        shared=r.shared,
        own=r.own,
        targets=options.consolidate_on,
        loss=Loss("consolidation"),
        alone=0.0,
        mean_gradient=False,
    )


def smoothing_stage(r: Personal, s: Private | None, fit: Fit, options: Smoothing) -> Fitted:
    """Stage 1: S learns (by default from the rewrites), with R frozen or off."""
    joint = options.context == "joint"
    return fit(
        Stage(
            "smooth",
            trains="S",
            schedule=options.schedule,
            shared=r.shared if joint else None,
            own=r.own if joint else None,
            private=None if options.state == "reset" else s,
            fade=options.decay if options.state == "decay" else 1.0,
            targets=options.smooth_on,
            loss=options.smooth_loss,
        )
    )


def stream_conflict(rectified: Fitted, smoothed: Fitted) -> dict[str, Mean]:
    """How the two streams' weight updates of one round relate: their cosine, and the norms.

    A cosine below zero means that each stream undoes what the other does. Numbers only: the
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
