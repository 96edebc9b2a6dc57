"""Contrastive generation: what a prompt adds to another one decides the next token.

Context-aware decoding (Shi et al. 2023, arXiv 2305.14739): a model whose memory contradicts what
its prompt states often writes what it remembers. With p the next-token probabilities after the
prompt and q those after a second one, which lacks what the text is to be true to, and the same
text so far,

    log p~(v) = (1 + alpha) log p(v) - alpha log q(v) + const,  for p(v) >= beta max p.

The bound, of contrastive decoding (Li et al. 2022, arXiv 2210.15097), keeps tokens out that are
unlikely after both prompts.
"""

import math
from typing import Final

import torch
from torch import Tensor

from fedsdr.generation.rows import PaddedRows

PLAUSIBLE: Final = 0.1  # beta


def contrasted_logits(own: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """log p~ up to a constant, (B, V), minus infinity where the bound rules a token out.

    own, other: logits after either prompt, (B, V). strength: alpha of each row, (B,); 0 leaves the
    row as it is.
    """
    p, q = own.float().log_softmax(-1), other.float().log_softmax(-1)
    alpha = strength[:, None].to(p)
    ruled_out = (p < p.amax(-1, keepdim=True) + math.log(PLAUSIBLE)) & (alpha > 0)
    return (p + alpha * (p - q)).masked_fill(ruled_out, -torch.inf)


class ContrastedRows:
    """Two sets of rows that grow by the same tokens, with the interface of `PaddedRows`."""

    def __init__(self, own: PaddedRows, other: PaddedRows, strength: Tensor) -> None:
        self.own, self.other, self.strength = own, other, strength

    def logits(self) -> Tensor:
        """Of each row's next token, (B, V)."""
        return contrasted_logits(self.own.logits(), self.other.logits(), self.strength)

    def append(self, token: Tensor) -> None:
        """A token to each row, (B,)."""
        self.own.append(token)
        self.other.append(token)
