"""The product of all LoRA streams of a layer at once, with weight gradients for one of them alone.

[B_1 B_2] [A_1; A_2] h is B_1 A_1 h + B_2 A_2 h. Thin products cost a fraction of the base's
operations, but each is a call that reads or writes whole activations: two streams by one product
cost hardly more than one. Autograd's own formulas would compute the frozen one's gradient too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

FactorPair = tuple[Tensor, Tensor]  # A (r, in) and B (out, r), or (K, r, in) and (K, out, r)


def add_low_rank(
    out: Tensor, h: Tensor, scaling: float, trained: FactorPair, frozen: list[FactorPair]
) -> Tensor:
    """out + scaling B A h over all factors: h (n, in), out (n, out).

    Or K of all of these: h (K, n, in), out (K, n, out). Only `trained` and `h` get gradients.
    """
    result: Tensor = _AddLowRank.apply(out, h, scaling, *trained, frozen)  # type: ignore[no-untyped-call]
    return result


class _AddLowRank(Function):
    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        h: Tensor,
        scaling: float,
        a: Tensor,
        b: Tensor,
        frozen: list[FactorPair],
    ) -> Tensor:
        ctx.dtypes = a.dtype, b.dtype
        all_a = torch.cat([a, *(each for each, _ in frozen)], dim=-2).to(h.dtype)
        all_b = torch.cat([b, *(each for _, each in frozen)], dim=-1).to(h.dtype)
        thin = h @ all_a.mT
        ctx.save_for_backward(h, thin[..., : a.shape[-2]], all_a, all_b)
        ctx.scaling = scaling
        add = torch.addmm if out.dim() == 2 else torch.baddbmm
        return add(out, thin, all_b.mT, alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        h, thin, all_a, all_b = ctx.saved_tensors
        rank = thin.shape[-1]
        _, needs_h, _, needs_a, needs_b, _ = ctx.needs_input_grad
        back = (g @ all_b) * ctx.scaling  # (..., n, r)
        grad_h = back @ all_a if needs_h else None
        grad_a = (back[..., :rank].mT @ h).to(ctx.dtypes[0]) if needs_a else None
        grad_b = (g.mT @ thin * ctx.scaling).to(ctx.dtypes[1]) if needs_b else None
        return g, grad_h, None, grad_a, grad_b, None
