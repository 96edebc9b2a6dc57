"""Whether a model's weights fit into the memory that is free, asked before loading them."""

import os
from pathlib import Path
from typing import Final

import torch

from fedsdr.core.errors import UserError
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


def check_fits(path: str, dtype: torch.dtype, quantisation: str, device: torch.device) -> None:
    """Raise `UserError` where the weights of a folder alone need more than is free."""
    if Path(path).is_dir():  # a hub's model may have to be downloaded first
        check_size(
            weight_bytes(model_outline(path), dtype, quantisation),
            path,
            dtype,
            quantisation,
            device,
        )


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
