"""Gradient checkpointing: blocks forget their activations and compute them again (Chen et al.
2016, arXiv 1604.06174)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from fedsdr.core.errors import UserError


def checkpointed_blocks(model: Any) -> list[GradientCheckpointingLayer]:
    """The blocks of a model that support checkpointing."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def check_checkpointing(model: Any) -> None:
    """Raise `UserError` for a model without such blocks."""
    if not checkpointed_blocks(model):
        raise UserError(
            f"{type(model).__name__} has no blocks that can be checkpointed: set "
            "model.gradient_checkpointing = false"
        )


@contextmanager
def recompute_activations(model: Any, on: bool) -> Iterator[None]:
    """The model with gradient checkpointing, if `on`, while the block runs.

    transformers does it in training mode alone, where a block's dropout is on; here only the
    block's forward pass is replaced, and every module stays in the mode it is in. The model must be
    called without a cache: a block that runs twice would fill it twice.
    """
    if not on:
        yield
        return
    chosen = checkpointed_blocks(model)
    try:
        for block in chosen:  # shadows the class's own
            block.__dict__["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in chosen:
            block.__dict__.pop("forward", None)
