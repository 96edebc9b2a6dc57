"""The loss of a batch, from logits at the positions that predict response tokens only.

The product with the vocabulary is a fifth of a small model's work, and its logits the largest
tensor of a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedsdr.core.metrics import Mean
from fedsdr.data.batches import Batch
from fedsdr.model.packing import segment_inputs


def response_loss(model: torch.nn.Module, batch: Batch) -> Mean:
    """sum of -log f(y | c, x) over the response tokens, and their number, as plain numbers."""
    return Mean(float(summed_loss(model, batch).detach()), batch.response_tokens)


def summed_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    """-log f(y_i | c_i, x_i), summed over the batch's response tokens: a scalar tensor.

    The supervised target of arXiv 2605.18028, Sec. method; the prompt is not learnt.
    """
    logits = response_logits(model, batch)
    return functional.cross_entropy(logits, batch.predicted, reduction="sum")


def token_losses(model: torch.nn.Module, batch: Batch) -> Tensor:
    """-log f(y_i | c_i, x_i) of each response token, row by row: (N,)."""
    logits = response_logits(model, batch)
    return functional.cross_entropy(logits, batch.predicted, reduction="none")


def response_logits(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Logits that predict the response tokens, one after another: (N, V), at least float32."""
    place: dict[str, Any] = {"attention_mask": batch.mask}
    if batch.lengths:
        place = segment_inputs(batch.lengths, batch.ids.device)
    with head_at(model, batch.predicting):
        logits: Tensor = model(input_ids=batch.ids, use_cache=False, **place).logits
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits[0].to(wide)


@contextmanager
def head_at(model: Any, places: Tensor) -> Iterator[None]:
    """Apply the model's output head at selected positions only; places: (B, T), booleans. Logits
    are then (1, N, V), with the model's own scaling or capping.
    """

    def chosen(_: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][places][None],)

    handle = model.get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()
