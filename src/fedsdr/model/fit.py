"""Whether a model's weights fit into the memory that is free, asked before loading them."""

import math
import os
from pathlib import Path
from typing import Final

import torch
from torch import nn

from fedsdr.core.errors import UserError
from fedsdr.model.folder import stored_tensors
from fedsdr.model.outline import model_outline, weight_bytes

MEMINFO: Final = Path("/proc/meminfo")
GIB: Final = 2**30


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still have on a device; None where the system does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept  # by PyTorch, for what comes next
    if device.type != "cpu":
        return None
    if MEMINFO.exists():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def loaded_bytes(path: str, model: nn.Module, dtype: torch.dtype, quantisation: str) -> int:
    """Bytes of the weights of a model folder or hub name once they are loaded.

    model: its outline. In a folder that was saved quantised, what is no ordinary weight of the
    model is counted as it is stored, whatever `quantisation` says; its other weights, such as the
    embedding and the norms, are loaded as `dtype`.
    """
    saved_quantised = getattr(model.config, "quantization_config", None) is not None
    if not saved_quantised or not Path(path).is_dir():
        return weight_bytes(model, dtype, quantisation)
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    return sum(
        math.prod(held.shape) * dtype.itemsize
        if held.is_float and shapes.get(name) == held.shape
        else held.size
        for name, held in stored_tensors(Path(path)).items()
    )


def check_fits(path: str, dtype: torch.dtype, quantisation: str, device: torch.device) -> None:
    """Raise `UserError` where the weights of a folder alone need more than is free."""
    if Path(path).is_dir():  # a hub's model may have to be downloaded first
        needed = loaded_bytes(path, model_outline(path), dtype, quantisation)
        check_size(needed, path, dtype, quantisation, device)


def check_size(
    needed: int, path: str, dtype: torch.dtype, quantisation: str, device: torch.device
) -> None:
    """Raise `UserError` where so many bytes of weights are more than is free."""
    free = free_memory(device)
    if free is not None and needed > free:
        raise UserError(
            f"the weights of {path!r} need {needed / GIB:.1f} GiB as "
            f"{str(dtype).removeprefix('torch.')}, quantisation {quantisation!r}, and "
            f"{free / GIB:.1f} GiB are free on {device}: set model.quantisation or model.dtype, "
            "take another model or device, or try all the same with model.memory_check = false"
        )
