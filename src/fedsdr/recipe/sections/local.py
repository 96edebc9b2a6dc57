"""`[local]`: training at a client. The defaults were chosen by measurement on the lab
(docs/findings.md)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsdr.recipe.sections.base import Positive, Section, Share

LearningRate = Annotated[float, Field(gt=0, lt=10, allow_inf_nan=False)]


class Local(Section):
    """Local training at a client. The rectify stage trains R, and is the only stage of methods with
    one stream; the smooth stage trains S (`fedsdr.algorithms.two_stream.Smoothing`).
    """

    batch_size: Positive = 16
    """Records in a batch."""
    micro_batch: Positive | None = None
    """Records in memory at a time: larger batches are processed in parts, with the same
    gradient."""
    cohort: Positive | Literal["auto"] = 1
    """Clients that are trained at once, with one adapter per batch row. This is faster for small
    models and small batches, and slower where records of different lengths need padding
    (docs/performance.md). `"auto"` is 1 in that case, and otherwise as many as fit into half of the
    free memory. Results differ only by rounding."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Whether the learning rates of all stages are constant, or fall from round to round along a
    cosine to `final_lr`."""
    final_lr: Annotated[float, Field(ge=0, lt=10, allow_inf_nan=False)] = 0.0
    """The learning rate that a cosine schedule falls to."""
    rectify_steps: Positive = 10
    """Optimiser steps of the rectify stage in a round."""
    rectify_lr: LearningRate = 3e-4
    """The AdamW learning rate of the rectify stage."""
    smooth_steps: Positive = 10
    """Optimiser steps of the smooth stage in a round."""
    smooth_lr: LearningRate = 3e-4
    """The AdamW learning rate of the smooth stage."""
    smoothing_state: Literal["keep", "reset", "decay"] = "reset"
    """What S starts a round from: its state after the last round (`"keep"`), the same with its
    weight B A scaled by `smoothing_decay` (`"decay"`), or a fresh adapter (`"reset"`)."""
    smoothing_decay: Share = 0.5
    """The factor of `"decay"`."""
    smoothing_context: Literal["joint", "base"] = "base"
    """What S is trained on top of: W0 + R (`"joint"`) or W0 (`"base"`)."""
    rectify_alone: Share = 0.5
    """The share of rectify batches in which S is off, so that R learns to work without it."""
    stage_order: Literal["smooth_first", "rectify_first"] = "smooth_first"
    """Which stage comes first. With `"rectify_first"`, R is trained with the S of the last round,
    then S."""
    smoothing_targets: Literal["distilled", "raw"] = "distilled"
    """What S learns from."""
    smoothing_loss: Literal["cross_entropy", "soft", "on_policy"] = "cross_entropy"
    """What S learns of them, as `federation.loss` says it of R."""
    rectify_targets: Literal["raw", "distilled"] = "raw"
    """What R learns from."""
    consolidate_steps: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps of a third stage in which W0 + R learns to predict what the client's W0 + R +
    S predicts; 0 for none."""
    consolidate_lr: LearningRate = 3e-4
    """The AdamW learning rate of the third stage."""
    consolidate_targets: Literal["raw", "distilled"] = "raw"
    """The responses on whose tokens the third stage learns."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """The gradient norm that gradients are clipped to."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """AdamW's weight decay."""

    @model_validator(mode="after")
    def _rates_fall(self) -> "Local":
        third = ["consolidate_lr"] if self.consolidate_steps else []
        for name in ("rectify_lr", "smooth_lr", *third):
            if self.schedule == "cosine" and self.final_lr > getattr(self, name):
                raise ValueError(f"final_lr = {self.final_lr} is above {name}: lower it")
        return self
