"""Soft targets: any algorithm whose clients learn a teacher's distributions in place of words.

The teacher is the base model W0 with the record's own response as a reference in its prompt, the
prompt that rewrites (`distill.prompt`). What is minimised is in `fedsdr.training.soft`.
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from fedsdr.algorithms.contract import Algorithm, Loss, Options
from fedsdr.algorithms.stages import with_stages


class Soft(Options):
    """Soft targets at the words of the responses that are learnt from."""

    divergence: Literal["forward", "reverse"] = "forward"
    """`"forward"`: KL(teacher || student), which covers all that the teacher may say. `"reverse"`:
    KL(student || teacher), which keeps to what it is likely to say."""
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The weight of the divergence; cross entropy of the words themselves has 1 - `weight`."""
    follow: Literal["always", "agreeing"] = "always"
    """Where the teacher is followed. `"agreeing"`: at tokens that are its own likeliest; any other
    token is learnt as it stands, as what the teacher does not know, or would say otherwise."""

    @property
    def loss(self) -> Loss:
        """What stages minimise."""
        return Loss("soft", self.divergence, self.weight, self.follow == "agreeing")


class OnPolicy(Soft):
    """Soft targets at the words that the student samples, where these are accepted."""

    divergence: Literal["forward", "reverse"] = "reverse"
    """As of `soft`."""

    @property
    def loss(self) -> Loss:
        """What stages minimise."""
        return super().loss._replace(kind="on_policy")


def with_loss(inner: Algorithm, loss: Loss) -> Algorithm:
    """`inner`, whose stages minimise `loss`."""
    return with_stages(inner, lambda stage: replace(stage, loss=loss))
