"""Memory of a run: what is counted exactly, and activations traced on the meta device."""

from dataclasses import dataclass
from typing import Any

import torch

from fedsdr.data.batches import Batch
from fedsdr.model.checkpointing import recompute_activations
from fedsdr.model.dropout import lora_dropout
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.training.loss import response_logits


@dataclass(frozen=True)
class Memory:
    """Bytes on the model's device.

    weights: of the base model. adapters: all streams. optimiser: gradients and AdamW's moments
        of the trained stream. activations: what the backward pass keeps of the largest
        (micro-)batch; None where the model cannot be traced. logits: of that batch, with their
        gradient. cache: keys and values while the longest batch is rewritten.
    """

    weights: int
    adapters: int
    optimiser: int
    activations: int | None
    logits: int
    cache: int

    @property
    def training(self) -> int:
        return self.weights + self.adapters + self.optimiser + (self.activations or 0) + self.logits

    @property
    def rewriting(self) -> int:
        return self.weights + self.adapters + self.cache

    @property
    def peak(self) -> int:
        return max(self.training, self.rewriting)


def held_activations(
    two: TwoStreamModel, rows: int, length: int, again: bool, drop: float = 0.0
) -> int | None:
    """Bytes that autograd keeps for the backward pass of a step that trains R with S frozen.

    two: an outline in the base's dtype, with its streams. again: with gradient checkpointing.
    drop: share of dropout.
    Attention is traced in its plain form, which keeps the (T, T) weights: fused kernels keep less.
    """
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in two.model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # else its identity might be given to another one
        return tensor

    alive: list[torch.Tensor] = []
    two.train_only(Stream.RECTIFY)
    two.activate(Stream.RECTIFY, Stream.SMOOTH)
    try:
        with (
            torch.device("meta"),
            recompute_activations(two.model, again),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            ids = torch.zeros(rows, length, dtype=torch.long)
            learnt = torch.zeros(rows, length, dtype=torch.long, device="cpu")
            mask = torch.zeros(rows, 1, length, length, dtype=two.model.dtype)
            batch = Batch(ids, mask, learnt)
            with two.dropping(lora_dropout(drop, batch, range(rows)) if drop else None):
                response_logits(two.model, batch).log_softmax(-1)
    except Exception:  # an architecture whose flow depends on values, a mixture of experts say
        return None
    return sum(kept.values())


def logits_bytes(tokens: int, vocabulary: int, dtype: torch.dtype, taught: bool) -> int:
    """Logits of so many tokens with their gradient in float32 at least; where they are `taught`,
    with both models' log-probabilities and what the divergence adds up.
    """
    wide = torch.promote_types(dtype, torch.float32).itemsize
    return tokens * vocabulary * (dtype.itemsize + wide + 3 * wide * taught)


def cache_bytes(config: Any, tokens: int, dtype: torch.dtype) -> int:
    """Keys and values of `tokens` tokens in every layer."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return int(2 * text.num_hidden_layers * shared * width * tokens * dtype.itemsize)
