"""`[local]`: training at a client. The defaults were chosen by measurement on the lab
(docs/findings.md)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsdr.recipe.sections.base import Positive, Section, Share

LearningRate = Annotated[float, Field(gt=0, lt=10, allow_inf_nan=False)]


class Local(Section):
    """Local training. The rectify stage is the one that trains R: all there is in methods of
    one stream. smoothing_state, smoothing_context and rectify_alone are FedSDR's open choices
    (`fedsdr.algorithms.two_stream.Smoothing`), and these depart from it:

    smoothing_state: "decay" keeps S, its weight B A times smoothing_decay in every round; 1 is
        "keep", 0 starts from a weight of zero.
    stage_order: "rectify_first" trains R first, beside the S of the last round, and then S.
    smoothing_targets, rectify_targets: what S and R learn from.
    consolidate_steps: of a third stage, 0 for none, in which R alone learns what the client's own
        model, R with S, predicts (`fedsdr.training.teacher`), at the words of consolidate_targets.

    micro_batch: records in memory at a time: a batch of more is worked off in parts, with the
        same gradient.
    cohort: clients trained at once, each row of a batch with its own client's adapters. It pays for
        small models and small batches, whose steps are mostly the starting of operations, and not
        where records of different lengths are padded at a price (docs/performance.md); "auto" is 1
        there, and else as many as fit into half of the free memory. Results are the same but for
        rounding.
    schedule: the learning rates of all stages are constant, or fall from round to round along a
        cosine to final_lr (`fedsdr.training.annealing`).
    """

    batch_size: Positive = 16
    micro_batch: Positive | None = None
    cohort: Positive | Literal["auto"] = 1
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: Annotated[float, Field(ge=0, lt=10, allow_inf_nan=False)] = 0.0
    rectify_steps: Positive = 10
    rectify_lr: LearningRate = 3e-4
    smooth_steps: Positive = 10
    smooth_lr: LearningRate = 3e-4
    smoothing_state: Literal["keep", "reset", "decay"] = "reset"
    smoothing_decay: Share = 0.5
    smoothing_context: Literal["joint", "base"] = "base"
    rectify_alone: Share = 0.5
    stage_order: Literal["smooth_first", "rectify_first"] = "smooth_first"
    smoothing_targets: Literal["distilled", "raw"] = "distilled"
    rectify_targets: Literal["raw", "distilled"] = "raw"
    consolidate_steps: Annotated[int, Field(ge=0)] = 0
    consolidate_lr: LearningRate = 3e-4
    consolidate_targets: Literal["raw", "distilled"] = "raw"
    clip: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _rates_fall(self) -> "Local":
        third = ["consolidate_lr"] if self.consolidate_steps else []
        for name in ("rectify_lr", "smooth_lr", *third):
            if self.schedule == "cosine" and self.final_lr > getattr(self, name):
                raise ValueError(f"final_lr = {self.final_lr} is above {name}: lower it")
        return self
