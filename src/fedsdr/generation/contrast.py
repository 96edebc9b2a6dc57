"""Contrastive generation: what a prompt adds to another one decides the next token.

Context-aware decoding (Shi et al. 2023, arXiv 2305.14739): a model whose memory contradicts what
its prompt states often writes what it remembers. With p the next-token probabilities after the
prompt and q those after a second one, which lacks what the text is to be true to, and the same
text so far,

    log p~(v) = (1 + alpha) log p(v) - alpha log q(v) + const,  for p(v) >= beta max p.

The bound, of contrastive decoding (Li et al. 2022, arXiv 2210.15097), keeps tokens out that are
unlikely after both prompts. A memory that is sure of itself leaves what the prompt states little
probability, so that a high bound rules out the very token that is wanted.
"""

import torch
from torch import Tensor

from fedsdr.generation.rows import PaddedRows


def contrasted_logits(own: Tensor, other: Tensor, strength: Tensor, floor: Tensor) -> Tensor:
    """log p~ up to a constant, (B, V), minus infinity where the bound rules a token out.

    own, other: logits after either prompt, (B, V). strength, floor: alpha and beta of each row,
    (B,); a strength of 0 leaves the row as it is.
    """
    p, q = own.float().log_softmax(-1), other.float().log_softmax(-1)
    alpha = strength[:, None].to(p)
    ruled_out = (p < p.amax(-1, keepdim=True) + floor[:, None].to(p).log()) & (alpha > 0)
    return (p + alpha * (p - q)).masked_fill(ruled_out, -torch.inf)


class ContrastedRows:
    """Two sets of rows that grow by the same tokens, with the interface of `PaddedRows`."""

    def __init__(self, own: PaddedRows, other: PaddedRows, strength: Tensor, floor: Tensor) -> None:
        self.own, self.other, self.strength, self.floor = own, other, strength, floor

    def logits(self) -> Tensor:
        """Of each row's next token, (B, V)."""
        return contrasted_logits(self.own.logits(), self.other.logits(), self.strength, self.floor)

    def append(self, token: Tensor) -> None:
        """A token to each row, (B,)."""
        self.own.append(token)
        self.other.append(token)
