"""Dropout of the input of a LoRA branch, B A dropout(h), as PEFT's `lora_dropout`.

A mask does not depend on the state of a generator: whether an entry is dropped is a hash of the
example's key, the token's place in it, the layer and the channel. So it is the same however a batch
is laid out, cut into parts or shared by clients, when a block is computed again, and after a
resume.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fedsdr.core.errors import UserError
from fedsdr.data.batches import Batch

MASK: Final = 0xFFFFFFFF
PART: Final = 2**20  # entries whose hashes are in memory at once


class Dropout(NamedTuple):
    """share: of entries that become zero; the others grow by 1 / (1 - share).
    tokens: a key of 32 bits for each token of a batch, row by row, padding included: (N,), int64.
    """

    share: float
    tokens: Tensor

    def __call__(self, h: Tensor, layer: int) -> Tensor:
        """h: (N, in), or (K, N / K, in) of K clients. layer: the layer's own key."""
        if h.numel() != self.tokens.numel() * h.shape[-1]:
            raise UserError(
                f"lora.dropout = {self.share:g} needs layers that read every token of a batch, and "
                "one of this model's reads only some of them, as experts do: set lora.dropout = 0, "
                "or leave such layers out of lora.targets"
            )
        kept = self._kept(h.shape[-1], layer).view(h.shape)
        return torch.where(kept, h, 0.0) * (1 / (1 - self.share))

    def _kept(self, width: int, layer: int) -> Tensor:
        """(N, width), a part of the rows at a time: a hash takes eight bytes an entry, thrice."""
        rows = hash_integers(self.tokens ^ layer)[:, None]
        columns = hash_integers(torch.arange(width, device=rows.device))
        limit = int(self.share * (MASK + 1))
        parts = torch.split(rows, max(1, PART // width))
        return torch.cat([hash_integers(part ^ columns) >= limit for part in parts])


def lora_dropout(share: float, batch: Batch, keys: Sequence[int]) -> Dropout:
    """keys: of the batch's examples, in order; any integers."""
    device = batch.ids.device
    examples = torch.tensor([key & MASK for key in keys], device=device)
    if batch.lengths:
        lengths = torch.tensor(batch.lengths, device=device)
        places = torch.cat([torch.arange(n, device=device) for n in batch.lengths])
        return Dropout(
            share, hash_integers(examples.repeat_interleave(lengths) ^ hash_integers(places))
        )
    places = torch.arange(batch.ids.shape[1], device=device)
    return Dropout(share, hash_integers(examples[:, None] ^ hash_integers(places)).flatten())


def hash_integers(x: Tensor) -> Tensor:
    """A hash of 32-bit integers, one to one (Wellons' lowbias32), held in int64."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK  # what overflows is cut off in any case
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)
