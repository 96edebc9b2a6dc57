"""A two-stream model and three clients' examples, of which diagnostics are computed."""

import torch

from fedsdr.data.example import Example
from fedsdr.model.lora import TwoStreamModel
from support.tiny_models import SPECIALS, random_ids, two_streams

PAD = SPECIALS.index("<end>")


def examples(count: int, seed: int) -> list[Example]:
    """Prompts and responses of one to five words."""
    made = []
    for i in range(count):
        ids = random_ids(1, 10, seed=100 * seed + i)[0].tolist()
        made.append(Example(tuple(ids[: 1 + i % 5]), tuple(ids[5 : 6 + (i + seed) % 5])))
    return made


EXAMPLES = {"anna": examples(7, seed=1), "ben": examples(5, seed=2), "cleo": examples(4, seed=3)}


def new_model() -> TwoStreamModel:
    """All streams hold something."""
    return two_streams("llama", ("q_proj", "down_proj"), dtype=torch.float64)
