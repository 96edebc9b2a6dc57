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

KEY_BITS: Final = 63  # of examples and layers: an int64 that is not negative
GOLDEN: Final = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's step, and its factors, as int64
FACTORS: Final = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
PART: Final = 2**20  # entries whose hashes are in memory at once


class Dropout(NamedTuple):
    """share: of entries that become zero; the others grow by 1 / (1 - share).
    tokens: a key of 64 bits for each token of a batch, row by row, padding included: (N,), int64.
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
        rows = mix_bits(self.tokens ^ layer)[:, None]
        columns = _numbers_drawn(width, rows.device)
        limit = int(self.share * 2**64) - 2**63  # hashes are spread over all of int64
        parts = torch.split(rows, max(1, PART // width))
        return torch.cat([mix_bits(part ^ columns) >= limit for part in parts])


def lora_dropout(share: float, batch: Batch, keys: Sequence[int]) -> Dropout:
    """keys: of the batch's examples, in order; of `KEY_BITS` bits."""
    device = batch.ids.device
    examples = torch.tensor([*keys], device=device)
    if batch.lengths:
        lengths = torch.tensor(batch.lengths, device=device)
        places = torch.cat([_numbers_drawn(n, device) for n in batch.lengths])
        return Dropout(share, mix_bits(examples.repeat_interleave(lengths) ^ places))
    places = _numbers_drawn(batch.ids.shape[1], device)
    return Dropout(share, mix_bits(examples[:, None] ^ places).flatten())


def _numbers_drawn(count: int, device: torch.device) -> Tensor:
    """The first `count` numbers of SplitMix64 from the seed 0: (count,), int64."""
    return mix_bits(torch.arange(1, count + 1, device=device) * GOLDEN)


def mix_bits(x: Tensor) -> Tensor:
    """A hash of 64-bit integers, one to one: the output function of SplitMix64 (Steele, Lea and
    Flood 2014, doi 10.1145/2660193.2660195, with Stafford's "Mix13"). x: int64, whose products wrap
    around; bits are shifted to the right without the sign."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * FACTORS[0]
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * FACTORS[1]
    return x ^ (x >> 31 & (1 << 33) - 1)
