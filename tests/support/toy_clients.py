"""Clients whose local training is a quadratic: what algorithms are compared on.

`ToyClient` stands in for the local trainer. It is a pure function in float64, so that two runs
differ by the algorithms' own arithmetic alone.
"""

from dataclasses import replace

import torch

from fedsdr.algorithms.contract import Fitted, Round, Stage
from fedsdr.core import seeds
from fedsdr.core.adapters import (
    Adapter,
    Private,
    factor_of,
    plain_factors,
    rank_of,
    resize_rank,
    scale_product,
    select_tensors,
    unwrap_private,
)
from fedsdr.core.metrics import Mean

CLIENTS = ("anna", "ben", "cleo")
RECORDS = {"anna": 1, "ben": 3, "cleo": 6}
SHAPES = {
    "layers.0.x.lora_A.weight": (2, 3),
    "layers.0.x.lora_B.weight": (4, 2),
    "layers.1.y.lora_A.weight": (2, 4),
    "layers.1.y.lora_B.weight": (3, 2),
}


def random_adapter(*names: str | int, dtype: torch.dtype = torch.float64) -> Adapter:
    """An adapter of two layers and rank 2, a function of `names`."""
    draw = seeds.seeded_generator(0, *names)
    return {
        key: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
        for key, shape in SHAPES.items()
    }


def secret_round(number: int, seed: int, population: float = 1.0) -> Round:
    """A round whose secret is a function of its seed."""
    return Round(number, seed, population, secret=b"%d" % seed)


class ToyClient:
    """Local training by gradient descent on |theta + (1 - alone) company - goal|^2 / 2.

    The goal depends on the client and its targets, and the optimum moves with the company, as
    in the real thing. Pure: what a stage gives back depends on the stage alone. What a fresh
    adapter has is zero. `stages` remembers what was asked, `fits` what was answered.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.name, self.dtype = name, dtype
        self.stages: list[Stage] = []
        self.fits: list[Fitted] = []

    def __call__(self, stage: Stage) -> Fitted:
        self.stages.append(stage)
        self.fits.append(self.fit(stage))
        return self.fits[-1]

    def fit(self, stage: Stage) -> Fitted:
        zero = {key: torch.zeros(shape, dtype=self.dtype) for key, shape in SHAPES.items()}
        sent = plain_factors(stage.shared or {})
        r, s = (
            {**zero, **sent, **unwrap_private(stage.own)},
            {**zero, **unwrap_private(stage.private)},
        )
        s = scale_product(s, stage.fade) if stage.trains == "S" else s
        mine, other = (r, s) if stage.trains == "R" else (s, r)
        rank = rank_of(mine)
        other = resize_rank(other, rank)
        goal = random_adapter("goal", self.name, stage.targets, dtype=self.dtype)
        goal = resize_rank(goal, rank)
        after, gradient = dict(mine), {key: torch.zeros_like(t) for key, t in mine.items()}
        loss = Mean(0.0, 0.0)
        for _ in range(stage.schedule.steps):
            misses = {k: after[k] + (1 - stage.alone) * other[k] - goal[k] for k in after}
            for key in after:
                if stage.factors in ("both", factor_of(key)):
                    gradient[key] = gradient[key] + misses[key] / stage.schedule.steps
                    step = misses[key] + correction(stage, key, after[key])
                    after[key] = after[key] - stage.schedule.lr * step
            loss = loss.merge(Mean(sum(float((m**2).sum()) for m in misses.values()), 1))
        fitted = Fitted(RECORDS[self.name], loss, Private(mine), Private(after))
        if stage.trains == "S":
            return fitted
        return replace(
            fitted,
            shared=select_tensors(after, lambda key: key in sent),
            own=Private(select_tensors(after, lambda key: key not in sent)),
            gradient=select_tensors(gradient, lambda key: key in sent)
            if stage.mean_gradient
            else {},
        )


def correction(stage: Stage, key: str, value: torch.Tensor) -> torch.Tensor:
    """What a stage adds to the gradient of one tensor."""
    added = torch.zeros_like(value)
    if stage.pull is not None and key in stage.pull.towards:
        added = added + stage.pull.strength * (value - stage.pull.towards[key])
    if stage.shift is not None and key in stage.shift:
        added = added + stage.shift[key]
    return added
