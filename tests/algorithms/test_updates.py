"""What a client may send, and what the server refuses by the client's name; and the other way."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedsdr.algorithms.contract import (
    ClientState,
    Fitted,
    Round,
    Schedule,
    Setup,
    Stage,
    Update,
    check_broadcast,
    check_update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.uploads import with_equal_weights
from fedsdr.core.adapters import FOLDED, Adapter, Private, add_prefix
from fedsdr.core.metrics import Mean

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


def test_clients_that_do_not_count_weigh_the_same_and_keep_their_means():
    def fit(stage: Stage) -> Fitted:
        trained = {"a": torch.ones(2)}
        return Fitted(7, Mean(12.0, 8.0), Private(stage.shared or {}), Private(trained), trained)

    inner = fedavg(Setup(Schedule(1, 0.1)))
    given = {"a": torch.zeros(2)}, ClientState(), fit, Round(1, 0)
    counted, before = inner.client(*given)
    update, after = with_equal_weights(inner).client(*given)
    assert (counted.weight, counted.metrics) == (7, {"loss/rectify": Mean(12.0, 8.0)})
    assert (update.weight, update.metrics) == (1.0, {"loss/rectify": Mean(1.5, 1.0)})
    assert update.change["a"].tolist() == counted.change["a"].tolist() == [1.0, 1.0]
    assert after == before


# --- What a server sends

A, B = "layer.lora_A.weight", "layer.lora_B.weight"
PLAIN = {A: torch.ones(2, 3), B: torch.ones(5, 2)}  # of rank 2, from 3 inputs to 5 outputs
LATER = frozenset({FOLDED, "other/"})


def with_folded(a: tuple[int, ...], b: tuple[int, ...]) -> Adapter:
    return {**PLAIN, **add_prefix({A: torch.ones(a), B: torch.ones(b)}, FOLDED)}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_frozen_part_may_have_any_rank_that_its_layer_has(rank):
    check_broadcast(PLAIN, PLAIN)
    check_broadcast(with_folded((rank, 3), (5, rank)), PLAIN, LATER)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (with_folded((0, 3), (5, 0)), "frozen part of layer has the shapes (0, 3) and (5, 0)"),
        (with_folded((4, 3), (5, 4)), "the layer has 3 inputs and 5 outputs"),
        (with_folded((2, 4), (5, 2)), "the shapes (2, 4) and (5, 2)"),
        (with_folded((2, 3), (4, 2)), "the shapes (2, 3) and (4, 2)"),
        (with_folded((2, 3), (5, 1)), "the shapes (2, 3) and (5, 1)"),
        (with_folded((), (5, 0)), "the shapes () and (5, 0)"),
        ({**PLAIN, FOLDED + A: torch.ones(1, 3)}, "is not one of this model's layers"),
        ({**PLAIN, "another/" + A: torch.ones(2, 3)}, "unexpected keys ['another/"),
        ({A: PLAIN[A]}, f"missing keys ['{B}']"),
        ({**PLAIN, B: torch.ones(5, 2).double()}, f"{B} is torch.float64, expected torch.float32"),
        ({**PLAIN, B: torch.full((5, 2), math.nan)}, "NaN or infinite"),
    ],
)
def test_what_no_server_sends(sent, reason):
    with pytest.raises(ValueError, match="what the server sent") as caught:
        check_broadcast(sent, PLAIN, LATER)
    assert reason in str(caught.value)


def test_a_frozen_part_has_the_models_precision():
    sent = with_folded((1, 3), (5, 1))
    sent[FOLDED + A] = sent[FOLDED + A].half()
    with pytest.raises(ValueError, match=r"float16, expected torch\.float32"):
        check_broadcast(sent, PLAIN, LATER)
