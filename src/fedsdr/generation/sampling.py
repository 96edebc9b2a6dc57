"""A generation job, and how its next token is chosen.

Each row draws from its own seed (inverse-CDF sampling from one uniform number a step), so what
a prompt yields does not depend on its neighbours in the batch.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedsdr.core import seeds

Stop = int | Collection[int]  # the tokens that end a text


def stop_tokens(stop: Stop) -> frozenset[int]:
    """One token or several as a set."""
    return frozenset([stop] if isinstance(stop, int) else stop)


class Contrast(NamedTuple):
    """The ids of a second prompt, how strongly a text departs from what the model would write
    after it, and the bound on what it may choose (`fedsdr.generation.contrast`)."""

    prompt: Sequence[int]
    strength: float
    floor: float


@dataclass(frozen=True)
class Job:
    """One text to generate: prompt ids, at most `limit` new tokens, and a seed for sampling."""

    prompt: Sequence[int]
    limit: int
    seed: int = 0
    contrast: Contrast | None = None


def choose_tokens(logits: Tensor, temperature: float, draw: Tensor | None) -> Tensor:
    """The next token of each row: the likeliest, or the one whose CDF interval holds `draw`."""
    if draw is None:
        return logits.argmax(-1)
    cdf = (logits.double() / temperature).softmax(-1).cumsum(-1)  # (B, V)
    token = torch.searchsorted(cdf, (draw * cdf[:, -1])[:, None], right=True)
    return token.squeeze(1).clamp(max=logits.shape[-1] - 1)


def uniform_draws(job: Job) -> Tensor:
    """(limit,) numbers in [0, 1) that depend on the job's seed alone."""
    return torch.rand(
        job.limit, dtype=torch.float64, generator=seeds.seeded_generator(job.seed, "sampling")
    )
