"""Merging: an adapter's change added into the weights, so that no PEFT is needed to load them."""

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, Adapter, layer_paths
from fedsdr.core.errors import UserError
from fedsdr.recipe.sections.recipe import Recipe


def check_mergeable(recipe: Recipe) -> None:
    """Raise `UserError` where the weights are quantised: a sum could not be written back."""
    if recipe.model.quantisation != "none":
        raise UserError(
            "the base model is quantised, so nothing can be merged into its weights: export the "
            "adapter (without --merge), or merge into the unquantised base with PEFT"
        )


@torch.no_grad()
def merge_adapter(model: Any, adapter: Adapter, scaling: float, dtype: torch.dtype) -> None:
    """W <- W + scaling B A in every layer of the adapter, in place; then all in `dtype`.

    The sum is taken in float32 (or the weights' own dtype if that is wider) and rounded once.
    Layers keep their orientation: GPT-2's Conv1D has (in, out).
    """
    assert getattr(model.config, "quantization_config", None) is None
    for path in layer_paths(adapter):
        layer = model.get_submodule(path)
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        a, b = (adapter[path + s].to(layer.weight.device, wide) for s in (A_SUFFIX, B_SUFFIX))
        change = scaling * (b @ a)  # (out, in)
        if isinstance(layer, Conv1D):
            change = change.T
        layer.weight.data = (layer.weight.to(wide) + change).to(dtype)
    model.to(dtype)
    model.config.dtype = dtype
