"""A gradient on a few tokens before any work: whether a model's adapters can learn."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedsdr.core import seeds
from fedsdr.core.adapters import fresh_adapter
from fedsdr.core.errors import UserError
from fedsdr.data.batches import Batch, collate_examples
from fedsdr.data.example import Example
from fedsdr.model.checkpointing import recompute_activations
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.trials import TRIAL_TEXTS, compute_precision, plain_logits, same_logits
from fedsdr.training.loss import response_logits, summed_loss


def check_learns(model: TwoStreamModel, checkpointing: bool) -> None:
    """Raise `UserError` where no gradient reaches R, or another one with checkpointing.

    R holds zeros afterwards, and every stream is off.
    """
    kind = type(model.model).__name__
    parameters = list(model.train_only(Stream.RECTIFY).values())
    model.load(Stream.RECTIFY, fresh_adapter(model.blank(), seeds.seeded_generator(0, "trial")))
    model.activate(Stream.RECTIFY)
    try:
        slopes = _gradient(model.model, parameters, False)
        if not _head_is_last(model.model):
            raise UserError(f"{kind} cannot be trained: its head is not what its logits come from")
        if not slopes.any():
            raise UserError(f"the adapters of {kind} get no gradient: choose other lora.targets")
        if checkpointing:
            again = _gradient(model.model, parameters, True)
            if not same_logits(again, slopes, compute_precision(model.model)):
                raise UserError(
                    f"{kind} has other gradients with gradient checkpointing: set "
                    "model.gradient_checkpointing = false"
                )
    except RuntimeError as error:  # torch's, of a graph that it cannot go back through
        raise UserError(f"{kind} cannot be trained: {error}") from error
    finally:
        model.train_only(None)
        model.load(Stream.RECTIFY, model.blank())
        model.activate()


@torch.no_grad()
def _head_is_last(model: Any) -> bool:
    """Whether logits at some places alone are those of the whole text there."""
    batch = _batch(model)
    wanted = plain_logits(model, TRIAL_TEXTS[0])[batch.predicting[0]]
    return same_logits(response_logits(model, batch), wanted, compute_precision(model))


def _batch(model: Any) -> Batch:
    return collate_examples([Example(TRIAL_TEXTS[0][:1], TRIAL_TEXTS[0][1:])], 0).to(model.device)


def _gradient(model: Any, parameters: Sequence[Tensor], again: bool) -> Tensor:
    """Of the loss of a text by the adapters, all in one, float32 at least."""
    with torch.enable_grad(), recompute_activations(model, again):
        loss = summed_loss(model, _batch(model))
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([each.flatten() for each in found])
