"""Which type the weights have."""

import pytest
import torch

from fedsdr.model.base import choose_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "capabilities", "wanted"),
    [
        ("native", {"amx_bf16": True}, torch.bfloat16),
        ("native", {"amx_bf16": False, "avx512_bf16": True}, torch.float32),
        ("native", {}, torch.float32),
        ("auto", {"amx_bf16": True}, torch.float32),
        ("float16", {"amx_bf16": True}, torch.float16),
    ],
)
def test_native_is_bfloat16_where_a_cpu_multiplies_matrices_of_it(
    name, capabilities, wanted, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_dtype(name, CPU) is wanted


def test_native_is_float32_with_a_torch_that_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_dtype("native", CPU) is torch.float32
