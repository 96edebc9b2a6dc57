"""Adapter algebra against numpy and explicitly formed products; what a private adapter refuses."""

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr import adapters
from fedsdr.adapters import A_SUFFIX, B_SUFFIX, Adapter, Private
from fedsdr.algorithms.contract import ClientState, Update
from fedsdr.files import write_tensors
from fedsdr.metrics import Mean

PATHS = ("model.layers.0.q_proj", "model.layers.1.mlp.up")
SIZES = {PATHS[0]: (5, 4), PATHS[1]: (3, 6)}  # path -> (out, in)

seeds_ = st.integers(0, 10_000)
ranks = st.integers(1, 3)
weights = st.floats(0.01, 100)


def make(seed: int, rank: int = 2, dtype: torch.dtype = torch.float64) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    adapter: Adapter = {}
    for path, (outputs, inputs) in SIZES.items():
        adapter[path + A_SUFFIX] = torch.randn(rank, inputs, generator=draw, dtype=dtype)
        adapter[path + B_SUFFIX] = torch.randn(outputs, rank, generator=draw, dtype=dtype)
    return adapter


def flat(a: Adapter) -> np.ndarray:
    """All entries in one vector, in key order."""
    return np.concatenate([a[key].double().numpy().ravel() for key in sorted(a)])


def product(a: Adapter) -> np.ndarray:
    """All weights B A in one vector."""
    formed = [a[p + B_SUFFIX].double().numpy() @ a[p + A_SUFFIX].double().numpy() for p in PATHS]
    return np.concatenate([weight.ravel() for weight in formed])


def angle(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def clone(a: Adapter) -> Adapter:
    return {key: tensor.clone() for key, tensor in a.items()}


def same(a: Adapter, b: Adapter) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- Entries


@settings(deadline=None)
@given(seeds_, seeds_, st.floats(-10, 10))
def test_sums_and_multiples_are_those_of_the_entries(i, j, factor):
    a, b = make(i), make(j)
    np.testing.assert_array_equal(flat(adapters.add(a, b)), flat(a) + flat(b))
    np.testing.assert_array_equal(flat(adapters.subtract(a, b)), flat(a) - flat(b))
    np.testing.assert_array_equal(flat(adapters.scale(a, factor)), flat(a) * factor)
    np.testing.assert_array_equal(flat(adapters.zeros_like(a)), 0 * flat(a))


@settings(deadline=None)
@given(st.lists(st.tuples(seeds_, weights), min_size=1, max_size=5))
def test_weighted_mean_is_numpys_average(pairs):
    parts = [make(seed) for seed, _ in pairs]
    got = adapters.weighted_mean(zip(parts, [w for _, w in pairs], strict=True))
    wanted = np.average([flat(part) for part in parts], axis=0, weights=[w for _, w in pairs])
    np.testing.assert_allclose(flat(got), wanted, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(seeds_, weights)
def test_the_mean_of_equal_adapters_is_that_adapter(seed, weight):
    a = make(seed)
    got = adapters.weighted_mean([(a, weight), (a, 2 * weight), (a, 0.5)])
    np.testing.assert_allclose(flat(got), flat(a), rtol=1e-14)


def test_weighted_mean_adds_up_in_float64_and_keeps_the_dtype():
    big, small = make(1, dtype=torch.float32), make(2, dtype=torch.float32)
    pairs = [(adapters.scale(big, 1e8), 1.0), (small, 1.0), (adapters.scale(big, -1e8), 1.0)]
    got = adapters.weighted_mean(iter(pairs))
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    np.testing.assert_allclose(flat(got), flat(small) / 3, rtol=1e-6)
    heavy = adapters.weighted_mean([(adapters.scale(small, 1e30), 1e30)])  # 1e60 on the way
    np.testing.assert_allclose(flat(heavy), 1e30 * flat(small), rtol=1e-6)


@pytest.mark.parametrize("pairs", [[], [(0, 0.0)], [(0, 1.0), (1, -1.0)], [(0, math.nan)]])
def test_a_mean_without_weight_is_refused(pairs):
    with pytest.raises(ValueError, match="more than 0"):
        adapters.weighted_mean((make(seed), weight) for seed, weight in pairs)


@settings(deadline=None)
@given(seeds_, seeds_)
def test_dot_norm_and_cosine_are_those_of_the_vector_of_all_entries(i, j):
    a, b = make(i), make(j)
    assert adapters.dot(a, b) == pytest.approx(flat(a) @ flat(b), abs=1e-9)
    assert adapters.norm(a) == pytest.approx(np.linalg.norm(flat(a)))
    assert adapters.cosine(a, b) == pytest.approx(angle(flat(a), flat(b)), abs=1e-12)


def test_cosine_with_zero_is_zero():
    a = make(0)
    zero = adapters.zeros_like(a)
    assert adapters.cosine(a, zero) == adapters.cosine(zero, zero) == 0.0
    assert adapters.product_cosine(a, zero) == adapters.product_cosine(zero, a) == 0.0
    assert adapters.product_cosine(a, {}) == 0.0


def test_size_counts_bytes():
    entries = 2 * (5 + 4) + 2 * (3 + 6)
    assert adapters.size_in_bytes(make(0)) == 8 * entries
    assert adapters.size_in_bytes(make(0, dtype=torch.float32)) == 4 * entries


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_entry_makes_an_adapter_not_finite(bad):
    a = make(0)
    assert adapters.all_finite(a)
    a[PATHS[1] + B_SUFFIX][0, 0] = bad
    assert not adapters.all_finite(a)


def test_layers_are_the_sorted_paths():
    assert adapters.layers(dict(reversed(make(0).items()))) == list(PATHS)


# --- Products


@settings(deadline=None)
@given(seeds_, seeds_, ranks, ranks)
def test_products_are_compared_without_being_formed(i, j, r, s):
    a, b = make(i, r), make(j, s)
    assert adapters.product_dot(a, b) == pytest.approx(product(a) @ product(b), abs=1e-9)
    assert adapters.product_norm(a) == pytest.approx(np.linalg.norm(product(a)))
    assert adapters.product_cosine(a, b) == pytest.approx(angle(product(a), product(b)), abs=1e-9)


@settings(deadline=None)
@given(seeds_, seeds_, ranks)
def test_product_change_is_the_change_of_the_product(i, j, rank):
    before, after = make(i, rank), make(j, rank)
    change = adapters.product_change(before, after)
    np.testing.assert_allclose(product(change), product(after) - product(before), atol=1e-12)
    for path, (outputs, inputs) in SIZES.items():
        assert change[path + A_SUFFIX].shape == (2 * rank, inputs)
        assert change[path + B_SUFFIX].shape == (outputs, 2 * rank)


# --- Strict keys

TWO: dict[str, Callable[[Adapter, Adapter], Any]] = {
    "add": adapters.add,
    "subtract": adapters.subtract,
    "dot": adapters.dot,
    "cosine": adapters.cosine,
    "product_change": adapters.product_change,
    "weighted_mean": lambda a, b: adapters.weighted_mean([(a, 1.0), (b, 1.0)]),
    "check_same_keys": adapters.check_same_keys,
}


@pytest.mark.parametrize("name", TWO)
def test_unequal_keys_are_named(name):
    a, b = make(0), make(1)
    b["stray"] = b.pop(PATHS[0] + A_SUFFIX)
    with pytest.raises(ValueError, match=rf"missing.*{PATHS[0]}.*unexpected.*stray"):
        TWO[name](a, b)


@pytest.mark.parametrize("name", TWO)
def test_unequal_shapes_are_named(name):
    with pytest.raises(ValueError, match=r"q_proj\.lora_A\.weight has shape \(3, 4\).*\(2, 4\)"):
        TWO[name](make(0), make(1, rank=3))


@pytest.mark.parametrize("measure", [adapters.product_dot, adapters.product_cosine])
def test_products_of_different_layers_are_refused(measure):
    a, b = make(0), make(1)
    for suffix in (A_SUFFIX, B_SUFFIX):
        del b[PATHS[1] + suffix]
    for pair in [(a, b), (b, a)]:
        with pytest.raises(ValueError, match="different layers"):
            measure(*pair)


def test_the_owner_of_wrong_keys_is_named():
    with pytest.raises(ValueError, match="update of client 'x'"):
        adapters.check_same_keys(make(0), {}, who="update of client 'x'")


@pytest.mark.parametrize("name", TWO)
def test_inputs_are_never_changed(name):
    a, b = make(0), make(1)
    a_before, b_before = clone(a), clone(b)
    out = TWO[name](a, b)
    for result in out.values() if isinstance(out, dict) else ():
        result.fill_(7.0)  # nor is what comes out a view of what went in
    assert same(a, a_before)
    assert same(b, b_before)


# --- Fresh adapters


def test_a_fresh_adapter_is_uniform_within_its_bound_and_adds_nothing():
    like = {"x" + A_SUFFIX: torch.ones(50, 400), "x" + B_SUFFIX: torch.ones(30, 50)}
    a = adapters.fresh(like, torch.Generator().manual_seed(0))
    factor, bound = a["x" + A_SUFFIX], 1 / math.sqrt(400)
    assert torch.equal(a["x" + B_SUFFIX], torch.zeros(30, 50))
    assert 0.99 * bound < float(factor.max()) <= bound
    assert -bound <= float(factor.min()) < -0.99 * bound
    assert float(factor.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(float(factor.mean())) < 0.02 * bound


def test_a_fresh_adapter_depends_on_the_seed_alone():
    def start(seed: int, like: Adapter) -> Adapter:
        return adapters.fresh(like, torch.Generator().manual_seed(seed))

    like = make(0)
    other_order = dict(reversed(make(1).items()))
    assert same(start(3, like), start(3, other_order))
    assert not same(start(3, like), start(4, like))
    assert same(like, make(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_fresh_adapter_has_the_dtype_it_is_asked_for(dtype):
    a = adapters.fresh(make(0, dtype=dtype), torch.Generator().manual_seed(0))
    assert {tensor.dtype for tensor in a.values()} == {dtype}


# --- Private

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
        COPIES[how](Private(make(0)))
    COPIES[how](make(0))  # which a plain adapter can


@pytest.mark.parametrize("convert", [json.dumps, torch.as_tensor, dict, list, vars, len, iter])
def test_a_private_adapter_is_no_container(convert):
    with pytest.raises((TypeError, RuntimeError), match=r"not|has no|must|Could"):
        convert(Private(make(0)))


def test_a_private_adapter_is_no_tensor_for_a_file(tmp_path):
    with pytest.raises(AttributeError):
        write_tensors(tmp_path / "s", {"s": Private(make(0))})
    assert list(tmp_path.iterdir()) == []


def test_a_private_adapter_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match="never leaves its client"):
        torch.save(Private(make(0)), tmp_path / "s.pt")


def test_a_private_adapter_does_not_fit_into_an_update():
    private: Any = Private(make(0))
    cases: list[tuple[Any, Any]] = [
        (private, {}),
        ({"x": private}, {}),
        ({}, {"loss": private}),
        ({}, {"loss": Mean(private, 1)}),
        ({}, {"loss": Mean(make(0)[PATHS[0] + A_SUFFIX], 1)}),
    ]
    for change, metrics in cases:
        with pytest.raises(TypeError, match="an update"):
            Update(change, 1.0, metrics)
    assert Update(make(0), 1.0, {"loss": Mean(2, 1)}).metrics["loss"].value == 2


@pytest.mark.parametrize(
    "measure",
    [
        lambda a: a,
        lambda a: a[PATHS[0] + A_SUFFIX],
        lambda a: a[PATHS[0] + A_SUFFIX].sum(),
        lambda a: a[PATHS[0] + A_SUFFIX].tolist(),
        lambda a: np.float64(1.0),
        lambda a: 1,
        lambda a: str(a),
        lambda a: (adapters.norm(a), 0.0),
    ],
)
def test_only_a_float_may_leave_a_private_adapter(measure):
    with pytest.raises(TypeError, match="only a float"):
        Private(make(0)).number(measure)


def test_a_number_of_a_private_adapter_is_that_of_its_tensors():
    assert Private(make(0)).number(adapters.norm) == adapters.norm(make(0))
    assert same(adapters.unwrap(Private(make(0))), make(0))


def test_a_private_adapter_is_apart_from_the_dict_it_was_made_of():
    given_ = make(0)
    private = Private(given_)
    given_.clear()
    adapters.unwrap(private).clear()
    private.number(lambda a: float(len(a)) if a.clear() is None else 0.0)
    assert same(adapters.unwrap(private), make(0))


def test_a_private_adapter_shows_no_values():
    private = Private({PATHS[0] + A_SUFFIX: torch.full((1, 1), 0.12345)})
    for text in (repr(private), str(private), f"{private}", repr(ClientState({"s": private}))):
        assert "0.1" not in text
        assert "tensor(" not in text
        assert "1 tensors" in text
