"""Bases in 8 and 4 bits, by bitsandbytes: LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) and
NF4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314)."""

from importlib import util
from typing import Any

import torch
from torch import nn

from fedsdr.core.errors import UserError


def check_quantisation(quantisation: str) -> None:
    """Raise `UserError` where the libraries for it are not installed."""
    if quantisation == "none":
        return
    for library in ("bitsandbytes", "accelerate"):
        if util.find_spec(library) is None:
            raise UserError(
                f"model.quantisation = {quantisation!r} needs {library}: "
                "pip install 'fedsdr[quantised]', or set it to 'none'"
            )


def loading_options(quantisation: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`; activations and adapters' inputs are in `dtype`."""
    check_quantisation(quantisation)
    if quantisation == "none":
        return {}
    from transformers import BitsAndBytesConfig

    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantisation == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_differentiable(model: nn.Module) -> None:
    """Forbid bitsandbytes to repack 4-bit weights for a CPU's fast inference: they would be
    repacked at the first rewriting, and pass no gradient from then on."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
