"""Texts of different lengths in one pass without padding: end to end in one row, (1, N).

All of a transformer but attention treats tokens one by one, so attention alone must know where a
text ends: it is computed text by text. Positions count from 0 in each. Padding is what this saves:
with four records of real instructions in a batch, about half of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from fedsdr.model.trials import (
    TRIAL_TEXTS,
    compute_precision,
    passes_trial,
    plain_logits,
    same_logits,
)

NAME: Final = "fedsdr_packed"
CALL: Final = {"cpu": 6e6}  # operations that could be done while a small attention starts, measured
CALL_ELSEWHERE: Final = 2e10  # an estimate for GPUs: 60 microseconds at 300 TFLOP/s


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Sequence[int] = (),
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each text: (1, H, N, D) -> (1, N, H, D).

    cu_seq_lens_q: where texts begin, and N, by transformers' name for it.
    """
    parts = []
    for start, end in pairwise(cu_seq_lens_q):
        q, k, v = (each[:, :, start:end] for each in (query, key, value))
        if q.dtype == torch.bfloat16 and q.device.type == "cpu":
            parts.append(_plain(q, k, v, scaling))
        else:
            found = sdpa_attention_forward(module, q, k, v, None, scaling=scaling, is_causal=True)
            parts.append(found[0])
    return torch.cat(parts, dim=1), None


def _plain(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    """The formula: on CPUs twice as fast as torch's fused kernel in bfloat16, not in float32."""
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2)


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask: the boundaries of the texts replace it."""


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def packed_attention(model: Any, on: bool) -> Iterator[None]:
    """The model with attention by texts, if `on`, while the block runs, backward pass included."""
    config = model.config
    usual = config._attn_implementation
    config._attn_implementation = NAME if on else usual
    try:
        yield
    finally:
        config._attn_implementation = usual


class Packing:
    """Whether a model supports packed texts, and when packing is faster than padding."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def pays(self, lengths: Sequence[int]) -> bool:
        """Whether texts of these lengths are faster end to end than padded to the longest.

        Each padding token costs 4 N operations (forward pass, and gradient of the input), each
        text a call of attention in every layer.
        """
        wasted = len(lengths) * max(lengths) - sum(lengths)
        call = CALL.get(self.model.device.type, CALL_ELSEWHERE)
        return wasted * 4 * self._layer > len(lengths) * call and self.possible

    @cached_property
    def _layer(self) -> float:
        """Weights of matrix products in a layer."""
        matrices: int = sum(p.numel() for p in self.model.parameters() if p.dim() == 2)
        return matrices / int(self.model.config.get_text_config().num_hidden_layers)

    @cached_property
    def possible(self) -> bool:
        """Whether all layers attend to the whole text by the usual kernel, and a trial agrees.

        The trial finds what else mixes tokens (recurrence, convolution) or ignores positions.
        """
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        windowed = getattr(config, "sliding_window", None) and "layer_types" not in config.to_dict()
        if config._attn_implementation != "sdpa" or kinds != {"full_attention"} or windowed:
            return False
        return passes_trial(self.model, _packs)


def _packs(model: Any) -> bool:
    lengths, device = [len(text) for text in TRIAL_TEXTS], model.device
    ids = torch.tensor([[i for text in TRIAL_TEXTS for i in text]], device=device)
    with packed_attention(model, True):
        logits = model(input_ids=ids, use_cache=False, **segment_inputs(lengths, device)).logits[0]
    wanted = torch.cat([plain_logits(model, text) for text in TRIAL_TEXTS])
    return same_logits(logits, wanted, compute_precision(model))


def segment_inputs(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Model inputs for texts packed end to end: positions (1, N), and where each text begins."""
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return {"position_ids": positions.to(device), "cu_seq_lens_q": (0, *ends)}
