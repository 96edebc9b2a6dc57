"""Which linear layers of a model can carry adapters, and which a recipe's targets select."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsdr.core.errors import UserError
from fedsdr.model.blocks import ALL_BLOCKS, choose_blocks

ALL_LINEAR: Final = "all-linear"
# model_type -> what PEFT refuses to adapt there, because the fused kernel reads the weight and
# does not call the layer, or loads under another name. As of PEFT 0.21.
_FUSED: Final = r"\bout_proj$"
NOT_IN_PEFT: Final[Mapping[str, str]] = {
    "mamba": _FUSED,
    "mamba2": _FUSED,
    "falcon_mamba": _FUSED,
    "falcon_h1": _FUSED,
    "nemotron_h": _FUSED,
    "laguna": r"\bshared_experts\.",
}


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, which the packed weight of a quantised one does not show."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[1], layer.weight.shape[0]
    assert isinstance(layer, nn.Linear)
    return layer.out_features, layer.in_features


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by path, except the output head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def adaptable_layers(model: nn.Module) -> list[str]:
    """Paths of the linear layers that can carry adapters, here and in PEFT."""
    barred = NOT_IN_PEFT.get(getattr(model.config, "model_type", ""), "(?!)")
    return [
        path
        for path, layer in linear_layers(model).items()
        if not re.search(barred, path) and _is_linear(layer)
    ]


@torch.no_grad()
def _is_linear(layer: nn.Module) -> bool:
    """Whether a model's own subclass of a linear layer has the output of one (Llama 4's router
    returns scores and logits)."""
    if not type(layer).forward.__module__.startswith("transformers.models."):
        return True
    weight = layer.weight
    assert isinstance(weight, Tensor)
    outputs, inputs = layer_shape(layer)
    try:
        found = layer(weight.new_zeros(2, inputs))
    except (RuntimeError, ValueError, IndexError):  # it expects another shape
        return False
    return isinstance(found, Tensor) and found.shape == (2, outputs)


def select_layers(
    model: nn.Module, targets: str | Collection[str], layers: str | Sequence[int] = ALL_BLOCKS
) -> list[str]:
    """Paths of the linear layers that `targets` names, by type and exact last name part.

    "all-linear" is every linear layer but the output head, as in PEFT. layers: of which blocks. A
    name that selects nothing is an error: a silent no-op adapter is the worst outcome.
    """
    adaptable = adaptable_layers(model)
    blocks = choose_blocks(model, layers, adaptable)
    linear = {
        path: path.rpartition(".")[2]
        for path in adaptable
        if blocks is None or blocks.includes(path)
    }
    where = "" if blocks is None else f" in layers {', '.join(map(str, blocks.numbers))}"
    if targets == ALL_LINEAR and linear:
        return list(linear)
    names = {targets} if isinstance(targets, str) else set(targets)
    if not names:
        raise UserError(f"lora.targets is empty: choose from {_quoted(set(linear.values()))}")
    if unknown := names - set(linear.values()):
        raise UserError(
            f"lora.targets names {_quoted(unknown)}, which this model does not have{where}: "
            f"choose from {_quoted(set(linear.values()))}, or {ALL_LINEAR!r}"
        )
    return [path for path, name in linear.items() if name in names]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
