"""Rows of a static batch: prompts that are padded on the left, and grow by a token at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class PaddedRows:
    """Rows that grow by a token at a time, left-padded, with a KV cache."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], shared: int = 0) -> None:
        """shared: how many tokens the prompts begin with in common, which are read once for all;
        each has more of its own."""
        self.model = model
        self.inputs, self.mask = pad_left([prompt[shared:] for prompt in prompts], model.device)
        self.cache = DynamicCache(config=model.config)
        if shared:
            self._read_beginning(prompts[0][:shared])
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, shared:]

    def _read_beginning(self, ids: Sequence[int]) -> None:
        inputs = torch.tensor([list(ids)], device=self.model.device)
        self.model(input_ids=inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache.batch_repeat_interleave(len(self.mask))
        read = self.mask.new_ones(len(self.mask), len(ids))
        self.mask = torch.cat([read, self.mask], dim=1)

    def logits(self) -> Tensor:
        """Of each row's next token, (B, V)."""
        out = self.model(
            input_ids=self.inputs, attention_mask=self.mask, position_ids=self.positions,
            past_key_values=self.cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        logits: Tensor = out.logits[:, -1]
        return logits

    def append(self, token: Tensor) -> None:
        """A token to each row, (B,)."""
        self.inputs = token[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, T) each, of prompts padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # any id does: it is masked out
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
