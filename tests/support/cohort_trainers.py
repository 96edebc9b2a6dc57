"""Trainers of three clients on one model, who may train one after another or at once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedsdr.data.example import Example, Reference
from fedsdr.data.records import Record, Turn
from fedsdr.training.local import LocalTrainer
from support.tiny_models import random_ids
from support.toy_rounds import tensors

CLIENTS = ("anna", "ben", "cleo")
RECORD = Record((Turn("user", "a"),), "b")
COUNTS = {"anna": 5, "ben": 2, "cleo": 9}  # ben has less than a batch


def records(client: str, seed: int) -> list[Example]:
    made = []
    for i in range(COUNTS[client]):
        ids = random_ids(1, 9, 1000 * seed + 50 * len(client) + i)[0].tolist()
        asked, shown = ids[: 1 + i % 4], ids[2 : 5 + i % 4]
        reference = Reference(tuple(shown), 4, RECORD) if i % 3 else None
        made.append(Example(tuple(asked), tuple(ids[4 : 5 + (i + seed) % 5]), reference))
    return made


def turned_round(model: Any, examples: Sequence[Example], draws: Sequence[int]) -> list[Example]:
    """In place of sampling: responses from their ends, and more or less of them by the seed."""
    return [
        replace(each, response=each.response[::-1][: 1 + draw % 4])
        for each, draw in zip(examples, draws, strict=True)
    ]


def trainers(model: Any, round: int = 1, **changes: Any) -> list[LocalTrainer]:
    options = {
        "round": round, "seed": 3, "batch_size": 3, "clip": 0.5, "weight_decay": 0.02, "pad": 0,
        "sampler": turned_round,
    }  # fmt: skip
    return [
        LocalTrainer(
            model,
            {"raw": records(name, 1), "distilled": records(name, 2), "mixed": records(name, 3)},
            client=name,
            **(options | changes),
        )
        for name in CLIENTS
    ]


def furthest(a: Any, b: Any) -> float:
    """The largest difference, in units of a tensor's largest entry where that is above 1."""
    pairs = [(x, y) for x, y in zip(tensors(a), tensors(b), strict=True) if x.numel()]
    return max(float((x - y).abs().max()) / max(1.0, float(x.abs().max())) for x, y in pairs)
