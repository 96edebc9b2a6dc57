"""Which part of a mixture of experts is adapted, from shapes and names alone."""

from collections.abc import Collection
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D


def expert_weights(model: nn.Module) -> list[nn.Parameter]:
    """The experts that are single tensors, (experts, out, in) or flat, and no linear layers."""
    found = []
    for path, module in model.named_modules():
        if "expert" not in f"{path} {type(module).__name__}".lower():
            continue
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            found += [each for each in module.parameters(recurse=False) if each.dim() > 1]
    return found


def experts_notice(model: Any, adapted: Collection[str]) -> str:
    """Which part of a mixture of experts is left without adapters; "" for other models.

    model: with its weights or an outline, before it carries streams. adapted: paths of layers.
    """
    found = expert_weights(model)
    if not found:
        return ""
    share = sum(weight.numel() for weight in found) / model.num_parameters()
    attention = [path for path in adapted if "attn" in path or "attention" in path]
    what = "attention" if len(attention) == len(adapted) else "attention and other linear layers"
    what = what if attention else "linear layers outside of attention"
    verb = "is" if what == "attention" else "are"
    return (
        f"mixture of experts: {what} {verb} adapted, experts are not ({share:.0%} of the weights)"
    )
