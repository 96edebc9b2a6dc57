"""Linear layers with weights prepacked by oneDNN, for generation on CPUs.

A step of generation multiplies every weight with a few rows, and a plain matrix product spends
half of its time on reordering the weights, anew in each step. oneDNN accepts weights that are
reordered once. That needs a second copy of the weights, so it is done where memory allows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from fedsdr.model.fit import free_memory

ROWS: Final = 16  # that oneDNN chooses the order for; others are served as well
PACKABLE_DTYPES: Final = (torch.float32, torch.bfloat16)
SPARE_MEMORY: Final = 4  # times the copy must fit into free memory, of which others need some


@contextmanager
def prepacked_weights(model: Any) -> Iterator[None]:
    """Within it the model's linear layers compute with packed weights; without gradients alone.

    Does nothing on other devices, processors and dtypes, and to layers that are not plain.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _packs(layer)]
    size = sum(layer.weight.nbytes for layer in layers)
    free = free_memory(torch.device("cpu"))
    if free is None or SPARE_MEMORY * size > free:
        layers = []
    try:
        for layer in layers:
            layer.__dict__["forward"] = _forward(layer)  # shadows the class's own
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _packs(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in PACKABLE_DTYPES
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _forward(layer: nn.Linear) -> Any:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
    bias = None if layer.bias is None else layer.bias.detach()

    def forward(inputs: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return out

    return forward
