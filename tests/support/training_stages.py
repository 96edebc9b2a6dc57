"""Stages of local training on a tiny model, and a trainer for them."""

from typing import Any

import torch

from fedsdr.algorithms.contract import Schedule, Stage
from fedsdr.core.adapters import (
    A_SUFFIX,
    B_SUFFIX,
    FOLDED,
    Adapter,
    Private,
    add_prefix,
    resize_rank,
)
from fedsdr.data.example import Example
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.training.local import LocalTrainer
from support.tiny_models import SPECIALS, random_adapter, random_ids, two_streams

R, S = Stream.RECTIFY, Stream.SMOOTH
PAD = SPECIALS.index("<end>")
DECAY, SEED = 0.1, 5
TIGHT, LOOSE = 0.7, 1e6  # gradient norms that always and never bind
TARGETS = ("q_proj", "down_proj")
SHORT = Schedule(4, 1e-2)


def examples(count: int, seed: int) -> list[Example]:
    """Prompts and responses of one to five words."""
    made = []
    for i in range(count):
        ids = random_ids(1, 10, seed=100 * seed + i)[0].tolist()
        made.append(Example(tuple(ids[: 1 + i % 5]), tuple(ids[5 : 6 + (i + seed) % 5])))
    return made


DATA = {"raw": examples(7, seed=1), "distilled": examples(6, seed=2)}


def new_model() -> TwoStreamModel:
    """Both streams hold something, which a stage must not see unless it is given.

    In float64, since Adam makes much of the rounding of small gradients.
    """
    return two_streams("llama", TARGETS, dtype=torch.float64)


def adapter(seed: int) -> Adapter:
    return random_adapter(new_model().read(R), seed)


def trainer(model: TwoStreamModel, **changes: Any) -> LocalTrainer:
    options: dict[str, Any] = {
        "client": "a",
        "round": 2,
        "seed": SEED,
        "batch_size": 3,
        "clip": TIGHT,
        "weight_decay": DECAY,
        "pad": PAD,
    }
    return LocalTrainer(model, DATA, **(options | changes))


# R in two parts, what the server sent and what the client keeps; and a folded part of rank 2.
SENT = {key: tensor for key, tensor in adapter(1).items() if key.endswith(A_SUFFIX)}
KEPT = {key: tensor for key, tensor in adapter(1).items() if key.endswith(B_SUFFIX)}
FOLD = resize_rank(adapter(3), 2)
BESIDE_FOLD = {**adapter(1), **add_prefix(FOLD, FOLDED)}
PRIVATE = Private(adapter(2))
STAGES = {
    "R alone": (Stage("rectify", "R", SHORT, adapter(1)), []),
    "R beside S": (Stage("rectify", "R", SHORT, adapter(1), private=PRIVATE), []),
    "R beside S, half of it alone": (
        Stage("rectify", "R", SHORT, adapter(1), private=PRIVATE, alone=0.5),
        [1, 3],
    ),
    "S beside R": (
        Stage("smooth", "S", SHORT, adapter(1), private=PRIVATE, targets="distilled"),
        [],
    ),
    "S on W0 alone": (Stage("smooth", "S", SHORT, private=PRIVATE, targets="distilled"), []),
    "A of R": (Stage("rectify", "R", SHORT, adapter(1), factors="A"), []),
    "B of R beside S": (
        Stage("rectify", "R", SHORT, adapter(1), private=PRIVATE, factors="B"),
        [],
    ),
    "R, half of it the client's": (Stage("rectify", "R", SHORT, SENT, own=Private(KEPT)), []),
    "S beside R, half of it the client's": (
        Stage("smooth", "S", SHORT, SENT, own=Private(KEPT), private=PRIVATE),
        [],
    ),
    "R beside what is folded and S, half of it without S": (
        Stage("rectify", "R", SHORT, BESIDE_FOLD, private=PRIVATE, alone=0.5),
        [1, 3],
    ),
    "S beside R and what is folded": (
        Stage("smooth", "S", SHORT, BESIDE_FOLD, private=PRIVATE),
        [],
    ),
}
