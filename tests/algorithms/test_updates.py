"""What a client may send, and what the server refuses, by the client's name."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedsdr.algorithms.contract import Update, check_update
from fedsdr.core.adapters import Adapter, Private

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


def changed(**parts: Any) -> Adapter:
    change = {**{key: tensor.clone() for key, tensor in LIKE.items()}, **parts}
    return {key: tensor for key, tensor in change.items() if tensor is not None}


def with_one(value: float) -> torch.Tensor:
    tensor = torch.zeros(4)
    tensor[3] = value
    return tensor


@pytest.mark.parametrize(
    ("change", "weight", "reason"),
    [
        (changed(), 0, "has weight 0"),
        (changed(), 0.0, "has weight 0.0"),
        (changed(), -3, "has weight -3"),
        (changed(), math.nan, "has weight nan"),
        (changed(), math.inf, "has weight inf"),
        (changed(b=with_one(math.nan)), 1, "NaN or infinite"),
        (changed(b=with_one(math.inf)), 1, "NaN or infinite"),
        (changed(b=with_one(-math.inf)), 1, "NaN or infinite"),
        (changed(b=None), 1, "missing keys ['b']"),
        (changed(c=torch.zeros(1)), 1, "unexpected keys ['c']"),
        (changed(b=None, B=torch.zeros(4)), 1, "missing keys ['b'], unexpected keys ['B']"),
        ({}, 1, "missing keys ['a', 'b']"),
        (changed(a=torch.zeros(3, 2)), 1, "a has shape (3, 2), expected (2, 3)"),
        (changed(b=torch.zeros(4, 1)), 1, "b has shape (4, 1), expected (4,)"),
        (changed(b=torch.zeros(1)), 1, "b has shape (1,), expected (4,)"),
        (changed(b=torch.zeros(4).double()), 1, "b is torch.float64, expected torch.float32"),
        (changed(b=torch.zeros(4).half()), 1, "b is torch.float16, expected torch.float32"),
    ],
)
def test_updates_that_are_refused(change, weight, reason):
    with pytest.raises(ValueError, match="update of client 'ben'") as caught:
        check_update("ben", Update(change, weight), LIKE)
    assert reason in str(caught.value)


def test_an_update_of_right_keys_shapes_and_numbers_is_let_pass():
    check_update("ben", Update(changed(b=with_one(-1e30)), 0.5), LIKE)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Update(Private({"a": torch.zeros(1)}), 1), "a dict of tensors, not Private"),
        (lambda: Update({"a": Private({"b": torch.zeros(1)})}, 1), "but a is Private(1 tensors)"),
        (lambda: Update({"a": [1.0]}, 1), "but a is [1.0]"),
        (lambda: Update({}, 1, {"m": 1.0}), "but m is 1.0"),
        (lambda: Update({}, 1, {"m": torch.zeros(3)}), "but m is tensor"),
        (lambda: Update({}, 1, {"m": Private({})}), "but m is Private"),
    ],
)
def test_only_plain_tensors_and_means_can_be_sent(make: Callable[[], Update], reason):
    with pytest.raises(TypeError, match="an update") as caught:
        make()
    assert reason in str(caught.value)
