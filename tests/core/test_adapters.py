"""Adapter algebra against numpy; what a private adapter refuses."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.core import adapters
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, Adapter

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
    assert adapters.layer_paths(dict(reversed(make(0).items()))) == list(PATHS)


@settings(deadline=None)
@given(seeds_, seeds_, seeds_, weights, weights)
def test_the_algebra_is_linear(i, j, k, x, y):
    a, b, c = make(i), make(j), make(k)

    def combined(*pairs: tuple[Adapter, float]) -> np.ndarray:
        total = adapters.zeros_like(a)
        for adapter, factor in pairs:
            total = adapters.add(total, adapters.scale(adapter, factor))
        return flat(total)

    close = np.testing.assert_allclose
    close(combined((adapters.add(a, b), x)), combined((a, x), (b, x)), rtol=0, atol=1e-9)
    close(combined((a, x), (a, y)), combined((a, x + y)), rtol=0, atol=1e-9)
    close(flat(adapters.add(adapters.subtract(a, b), b)), flat(a), rtol=0, atol=1e-9)
    mixed = adapters.add(adapters.scale(a, x), adapters.scale(b, -y))
    wanted = x * adapters.dot(a, c) - y * adapters.dot(b, c)
    for pair in ((mixed, c), (c, mixed)):
        assert adapters.dot(*pair) == pytest.approx(wanted, abs=1e-7)
    assert adapters.norm(mixed) <= x * adapters.norm(a) + y * adapters.norm(b) + 1e-9


@settings(deadline=None)
@given(st.lists(st.tuples(seeds_, weights), min_size=1, max_size=5), st.randoms(), weights)
def test_a_mean_lies_between_its_parts_whatever_their_order_and_unit(pairs, random, unit):
    parts = [(make(seed), weight) for seed, weight in pairs]
    mean = flat(adapters.weighted_mean(parts))
    entries = np.stack([flat(a) for a, _ in parts])
    assert (entries.min(0) - 1e-9 <= mean).all()
    assert (mean <= entries.max(0) + 1e-9).all()
    random.shuffle(parts)
    changed = flat(adapters.weighted_mean((a, weight * unit) for a, weight in parts))
    np.testing.assert_allclose(changed, mean, rtol=0, atol=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(seeds_, weights), min_size=1, max_size=5), st.randoms())
def test_a_fold_is_the_sum_in_any_order_and_stays_what_it_was(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    folds = []
    for order in (pairs, shuffled):
        folds.append([adapters.no_sum(make(0))])
        for seed, weight in order:
            folds[-1].append(folds[-1][-1].plus(make(seed), weight))
    wanted = sum(weight * flat(make(seed)) for seed, weight in pairs)
    for each in folds:
        np.testing.assert_allclose(flat(each[-1].total), wanted, rtol=0, atol=1e-8)
        assert each[-1].weight == pytest.approx(sum(weight for _, weight in pairs))
        assert not flat(each[0].total).any()  # going on from it has not changed it


# --- Names and ranks


@settings(deadline=None)
@given(seeds_, ranks, st.integers(1, 6))
def test_resizing_keeps_the_first_components_and_fills_up_with_zeros(seed, rank, other):
    a = make(seed, rank)
    got = adapters.resize_rank(a, other)
    assert adapters.rank_of(a) == rank
    assert adapters.rank_of(got) == other
    kept = min(rank, other)
    for path, (outputs, inputs) in SIZES.items():
        factor_a, factor_b = got[path + A_SUFFIX], got[path + B_SUFFIX]
        assert (factor_a.shape, factor_b.shape) == ((other, inputs), (outputs, other))
        assert torch.equal(factor_a[:kept], a[path + A_SUFFIX][:kept])
        assert torch.equal(factor_b[:, :kept], a[path + B_SUFFIX][:, :kept])
        assert not factor_a[kept:].any()
        assert not factor_b[:, kept:].any()
    back = adapters.resize_rank(got, rank)
    assert same(back, a) == (other >= rank)
    got[PATHS[0] + A_SUFFIX].fill_(7.0)
    assert same(a, make(seed, rank))


@settings(deadline=None)
@given(seeds_, seeds_)
def test_tensors_sent_together_come_apart_again(i, j):
    plain, control = make(i), make(j)
    sent = {**plain, **adapters.add_prefix(control, "control/")}
    assert len(sent) == len(plain) + len(control)
    assert same(adapters.plain_factors(sent), plain)
    assert same(adapters.strip_prefix(sent, "control/"), control)
    assert adapters.strip_prefix(sent, "other/") == adapters.strip_prefix({}, "control/") == {}
    assert adapters.rank_of(sent) == adapters.rank_of(plain)
    assert adapters.layer_paths(adapters.strip_prefix(sent, "control/")) == list(PATHS)
    a_only = adapters.select_tensors(sent, lambda key: adapters.factor_of(key) == "A")
    b_only = adapters.select_tensors(sent, lambda key: adapters.factor_of(key) == "B")
    assert len(a_only) == len(b_only) == len(plain)
    assert same({**b_only, **a_only}, sent)


def test_the_rank_is_the_largest_of_the_plain_factors():
    a = {**make(0, 1), **adapters.add_prefix(make(1, 3), "folded/")}
    assert adapters.rank_of(a) == 1
    a[PATHS[1] + B_SUFFIX] = torch.zeros(3, 2)
    assert adapters.rank_of(a) == 2
    assert adapters.rank_of({PATHS[0] + A_SUFFIX: torch.zeros(2, 9)}) == 2
    assert adapters.rank_of({}) == adapters.rank_of(adapters.add_prefix(make(0), "control/")) == 0


@pytest.mark.parametrize(
    "key", ["x.lora_A", "x.lora_A.weight.", "lora_A.weight", "x.lora_E.weight", "x.weight", ""]
)
def test_other_names_are_no_factors(key):
    with pytest.raises(ValueError, match="is not the name of a LoRA factor"):
        adapters.factor_of(key)


# --- Strict keys

TWO: dict[str, Callable[[Adapter, Adapter], Any]] = {
    "add": adapters.add,
    "subtract": adapters.subtract,
    "dot": adapters.dot,
    "cosine": adapters.cosine,
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
    a = adapters.fresh_adapter(like, torch.Generator().manual_seed(0))
    factor, bound = a["x" + A_SUFFIX], 1 / math.sqrt(400)
    assert torch.equal(a["x" + B_SUFFIX], torch.zeros(30, 50))
    assert 0.99 * bound < float(factor.max()) <= bound
    assert -bound <= float(factor.min()) < -0.99 * bound
    assert float(factor.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(float(factor.mean())) < 0.02 * bound


def test_a_fresh_adapter_depends_on_the_seed_alone():
    def start(seed: int, like: Adapter) -> Adapter:
        return adapters.fresh_adapter(like, torch.Generator().manual_seed(seed))

    like = make(0)
    other_order = dict(reversed(make(1).items()))
    assert same(start(3, like), start(3, other_order))
    assert not same(start(3, like), start(4, like))
    assert same(like, make(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_fresh_adapter_has_the_dtype_it_is_asked_for(dtype):
    a = adapters.fresh_adapter(make(0, dtype=dtype), torch.Generator().manual_seed(0))
    assert {tensor.dtype for tensor in a.values()} == {dtype}
