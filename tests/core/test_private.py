"""What a private adapter refuses: copies, files, messages, and all numbers but single ones."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedsdr.algorithms.contract import ClientState, Update
from fedsdr.core import adapters
from fedsdr.core.adapters import A_SUFFIX, Adapter, Private
from fedsdr.core.files import write_tensors
from fedsdr.core.metrics import Mean
from support.toy_clients import random_adapter

KEY = "layers.0.x" + A_SUFFIX


def make() -> Adapter:
    return random_adapter("private")


def same(a: Adapter, b: Adapter) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": pickle.dumps,
    "pickle, oldest protocol": lambda x: pickle.dumps(x, protocol=0),
    "inside a list": lambda x: pickle.dumps([x]),
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "asdict": lambda x: dataclasses.asdict(ClientState({"s": x})),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_private_adapter_cannot_be_copied_or_pickled(how):
    with pytest.raises(TypeError, match="never leaves its client"):
        COPIES[how](Private(make()))
    COPIES[how](make())  # which a plain adapter can


@pytest.mark.parametrize("convert", [json.dumps, torch.as_tensor, dict, list, vars, len, iter])
def test_a_private_adapter_is_no_container(convert):
    with pytest.raises((TypeError, RuntimeError), match=r"not|has no|must|Could"):
        convert(Private(make()))


def test_a_private_adapter_is_no_tensor_for_a_file(tmp_path):
    with pytest.raises(AttributeError):
        write_tensors(tmp_path / "s", {"s": Private(make())})
    assert list(tmp_path.iterdir()) == []


def test_a_private_adapter_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match="never leaves its client"):
        torch.save(Private(make()), tmp_path / "s.pt")


def test_a_private_adapter_does_not_fit_into_an_update():
    private: Any = Private(make())
    cases: list[tuple[Any, Any]] = [
        (private, {}),
        ({"x": private}, {}),
        ({}, {"loss": private}),
        ({}, {"loss": Mean(private, 1)}),
        ({}, {"loss": Mean(make()[KEY], 1)}),
    ]
    for change, metrics in cases:
        with pytest.raises(TypeError, match="an update"):
            Update(change, 1.0, metrics)
    assert Update(make(), 1.0, {"loss": Mean(2, 1)}).metrics["loss"].value == 2


@pytest.mark.parametrize(
    "measure",
    [
        lambda a: a,
        lambda a: a[KEY],
        lambda a: a[KEY].sum(),
        lambda a: a[KEY].tolist(),
        lambda a: np.float64(1.0),
        lambda a: 1,
        lambda a: str(a),
        lambda a: (adapters.norm(a), 0.0),
    ],
)
def test_only_a_float_may_leave_a_private_adapter(measure):
    with pytest.raises(TypeError, match="only a float"):
        Private(make()).number(measure)


def test_a_number_of_a_private_adapter_is_that_of_its_tensors():
    assert Private(make()).number(adapters.norm) == adapters.norm(make())
    assert same(adapters.unwrap_private(Private(make())), make())


def test_a_private_adapter_is_apart_from_the_dict_it_was_made_of():
    given_ = make()
    private = Private(given_)
    given_.clear()
    adapters.unwrap_private(private).clear()
    private.number(lambda a: float(len(a)) if a.clear() is None else 0.0)
    assert same(adapters.unwrap_private(private), make())


def test_a_private_adapter_shows_no_values():
    private = Private({KEY: torch.full((1, 1), 0.12345)})
    for text in (repr(private), str(private), f"{private}", repr(ClientState({"s": private}))):
        assert "0.1" not in text
        assert "tensor(" not in text
        assert "1 tensors" in text
