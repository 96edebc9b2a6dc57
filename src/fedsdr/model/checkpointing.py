"""Gradient checkpointing: blocks forget their activations and compute them again (Chen et al.
2016, arXiv 1604.06174)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from fedsdr.errors import UserError


def blocks(model: Any) -> list[GradientCheckpointingLayer]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def check_checkpointing(model: Any) -> None:
    if not blocks(model):
        raise UserError(
            f"{type(model).__name__} has no blocks that can be checkpointed: set "
            "model.gradient_checkpointing = false"
        )


@contextmanager
def recomputed(model: Any, on: bool) -> Iterator[None]:
    """The model with gradient checkpointing, if `on`, while the block runs.

    transformers does it in training mode alone. Only the blocks themselves are put into that
    mode, not what is inside of them: dropout stays off, so gradients are those without it.
    """
    if not on:
        yield
        return
    chosen = blocks(model)
    config = model.config.get_text_config()
    caches = config.use_cache
    config.use_cache = False  # a block that runs twice would fill a cache twice
    for block in chosen:
        block.gradient_checkpointing = block.training = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        config.use_cache = caches
        for block in chosen:
            block.gradient_checkpointing = block.training = False
