"""A model on the meta device, built from its configuration without loading weights."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fedsdr.core.errors import UserError
from fedsdr.model.layers import layer_shape, linear_layers

BLOCK = 64  # weights of nf4 that share a scale (bitsandbytes' default)
NF4_TABLE = 16 * 4  # bytes of a layer's table of values


def model_outline(path: str, download: bool = False) -> Any:
    """The model of a folder or hub name, with shapes alone.

    download: whether the hub may be asked for a config.json that is not cached.
    """
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=not download)
    except Exception as error:  # transformers and huggingface_hub raise what they like
        first = "" if download else " first (an estimate downloads nothing)"
        raise UserError(
            f"cannot read the configuration of model.path = {path!r} "
            f"({str(error).splitlines()[0]}): give a folder with config.json, or download the "
            f"model{first}"
        ) from error
    return outline_of(config, path)


def outline_of(config: Any, path: str) -> Any:
    """The model of a transformers configuration, on the meta device."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).eval()
    except Exception as error:
        raise UserError(f"{path!r} is not a causal language model: {error}") from error


def token_table(model: Any) -> tuple[str, int] | None:
    """Name and number of rows of the table that turns tokens into vectors; None for other kinds."""
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        return None
    path = next(path for path, module in model.named_modules() if module is table)
    return f"{path}.weight", table.num_embeddings


def weight_bytes(model: nn.Module, dtype: torch.dtype, quantisation: str = "none") -> int:
    """Bytes of the loaded weights, tied ones counted once, with quantisation's own scales.

    int8: a byte a weight, and a float32 scale for each output. nf4: half a byte a weight, a
    float32 scale for each 64 of them, and a table a layer.
    """
    plain = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if quantisation == "none":
        return plain
    for layer in linear_layers(model).values():
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        plain += quantised_bytes(*layer_shape(layer), quantisation)
        plain -= weight.numel() * dtype.itemsize
    return plain


def quantised_bytes(outputs: int, inputs: int, quantisation: str) -> int:
    """Bytes of one linear layer's weight as bitsandbytes keeps it."""
    count = outputs * inputs
    if quantisation == "int8":
        return count + 4 * outputs + 1  # and the number of its layout
    return -(-count // 2) + 4 * -(-count // BLOCK) + NF4_TABLE
