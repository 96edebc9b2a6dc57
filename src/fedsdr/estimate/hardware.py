"""How fast a device is: stated by the user, or measured by a short matrix product and copy."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SIDE = 2048  # of the measured product
SECONDS = 0.3  # that each measurement lasts at least
MIB_COPIED = 256


@dataclass(frozen=True)
class Hardware:
    """flops: floating-point operations a second. bandwidth: bytes a second from memory."""

    name: str
    flops: float
    bandwidth: float


def measure_rates(device: torch.device, dtype: torch.dtype) -> Hardware:
    """The rate of a square matrix product in `dtype`, and of reading a copied buffer."""
    a = torch.randn(SIDE, SIDE, device=device).to(dtype)
    product = _seconds(lambda: a @ a, device)
    buffer = torch.zeros(MIB_COPIED * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(buffer)
    copy = _seconds(lambda: target.copy_(buffer), device)
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    name = f"{what}, {str(dtype).removeprefix('torch.')}, measured"
    return Hardware(name, 2 * SIDE**3 / product, 2 * buffer.numel() / copy)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Mean time of one call, after a first one that does not count."""
    work()
    _wait(device)
    began, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < SECONDS:
        work()
        _wait(device)
        calls += 1
    return spent / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
