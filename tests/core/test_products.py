"""Products B A against weights formed with numpy: sums, best approximations, rotations."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.core import adapters, products
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, Adapter
from fedsdr.core.products import ProductSum

PATHS = ("model.layers.0.q_proj", "model.layers.1.mlp.up")
SIZES = {PATHS[0]: (5, 4), PATHS[1]: (3, 6)}  # path -> (out, in)
LARGE = {PATHS[0]: (30, 40), PATHS[1]: (50, 20)}

seeds_ = st.integers(0, 10_000)
ranks = st.integers(1, 3)
# Larger than a side of a layer, or than both, is a rank too.
any_rank = st.integers(1, 8)
factors_ = st.one_of(st.floats(-10, -0.01), st.floats(0.01, 10))


def make(
    seed: int,
    rank: int = 2,
    dtype: torch.dtype = torch.float64,
    sizes: dict[str, tuple[int, int]] = SIZES,
) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    adapter: Adapter = {}
    for path, (outputs, inputs) in sizes.items():
        adapter[path + A_SUFFIX] = torch.randn(rank, inputs, generator=draw, dtype=dtype)
        adapter[path + B_SUFFIX] = torch.randn(outputs, rank, generator=draw, dtype=dtype)
    return adapter


def without(a: Adapter, suffix: str) -> Adapter:
    """One factor zero."""
    return {key: t * 0 if key.endswith(suffix) else t for key, t in a.items()}


def repeated(a: Adapter) -> Adapter:
    """Every component twice: the product has half the rank of the factors."""
    return {key: torch.cat([t, t], dim=0 if key.endswith(A_SUFFIX) else 1) for key, t in a.items()}


ADAPTERS: dict[str, Adapter] = {
    "thin": make(1, 2),
    "of one component": make(2, 1),
    "as wide as one side": make(3, 4),
    "wider than one side": make(4, 5),
    "wider than both": make(5, 9),
    "in float32": make(6, 2, torch.float32),
    "rank-deficient": repeated(make(7, 1)),
    "rank-deficient and wide": repeated(make(8, 2)),
    "with B zero": without(make(9, 2), B_SUFFIX),
    "with A zero": without(make(10, 3), A_SUFFIX),
    "zero": adapters.zeros_like(make(11, 2)),
}
every_adapter = pytest.mark.parametrize("a", ADAPTERS.values(), ids=ADAPTERS)


def formed(a: Adapter) -> dict[str, np.ndarray]:
    """The weights B A by path."""
    return {
        p: a[p + B_SUFFIX].double().numpy() @ a[p + A_SUFFIX].double().numpy()
        for p in adapters.layer_paths(a)
    }


def product(a: Adapter) -> np.ndarray:
    """All weights B A in one vector."""
    return np.concatenate([weight.ravel() for weight in formed(a).values()])


def angle(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def orthogonal(rank: int, seed: int) -> torch.Tensor:
    """A random orthogonal matrix, a reflection or not."""
    draw = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(rank, rank, generator=draw, dtype=torch.float64))
    return q * r.diagonal().sign()


def close(got: dict[str, torch.Tensor], wanted: dict[str, np.ndarray], tolerance=1e-10) -> None:
    assert got.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_allclose(got[path].numpy(), wanted[path], rtol=0, atol=tolerance)


# --- Comparing products


@settings(deadline=None)
@given(seeds_, seeds_, any_rank, any_rank)
def test_products_are_compared_without_being_formed(i, j, r, s):
    a, b = make(i, r), make(j, s)
    assert products.product_dot(a, b) == pytest.approx(product(a) @ product(b), abs=1e-9)
    assert products.product_norm(a) == pytest.approx(np.linalg.norm(product(a)))
    assert products.product_cosine(a, b) == pytest.approx(angle(product(a), product(b)), abs=1e-9)


@settings(deadline=None)
@given(seeds_, seeds_, ranks)
def test_product_change_is_the_change_of_the_product(i, j, rank):
    before, after = make(i, rank), make(j, rank)
    change = products.product_change(before, after)
    np.testing.assert_allclose(product(change), product(after) - product(before), atol=1e-12)
    for path, (outputs, inputs) in SIZES.items():
        assert change[path + A_SUFFIX].shape == (2 * rank, inputs)
        assert change[path + B_SUFFIX].shape == (outputs, 2 * rank)


def test_the_cosine_with_zero_is_zero():
    a = make(0)
    zero = adapters.zeros_like(a)
    assert products.product_cosine(a, zero) == products.product_cosine(zero, a) == 0.0
    assert products.product_cosine(a, {}) == products.product_cosine({}, {}) == 0.0


@pytest.mark.parametrize("measure", [products.product_dot, products.product_cosine])
def test_products_of_different_layers_are_refused(measure):
    a, b = make(0), make(1)
    for suffix in (A_SUFFIX, B_SUFFIX):
        del b[PATHS[1] + suffix]
    for pair in [(a, b), (b, a)]:
        with pytest.raises(ValueError, match="different layers"):
            measure(*pair)


def test_a_change_between_unequal_keys_or_shapes_is_refused():
    a, b = make(0), make(1)
    b["stray"] = b.pop(PATHS[0] + A_SUFFIX)
    with pytest.raises(ValueError, match=rf"missing.*{PATHS[0]}.*unexpected.*stray"):
        products.product_change(a, b)
    with pytest.raises(ValueError, match=r"q_proj\.lora_A\.weight has shape \(3, 4\).*\(2, 4\)"):
        products.product_change(a, make(1, rank=3))


# --- Sums of products


@every_adapter
def test_weights_are_the_products(a):
    close(products.product_weights(a), formed(a), tolerance=1e-14)  # sums in another order
    assert {weight.dtype for weight in products.product_weights(a).values()} == {torch.float64}


@settings(deadline=None)
@given(st.lists(st.tuples(seeds_, any_rank, factors_), min_size=1, max_size=5))
def test_a_stack_and_a_fold_hold_the_weighted_sum_exactly(terms):
    parts = [(make(seed, rank), weight) for seed, rank, weight in terms]
    wanted = {p: sum(weight * formed(a)[p] for a, weight in parts) for p in PATHS}
    stacked = products.stack_components(parts)
    close(products.product_weights(stacked), wanted)
    assert adapters.rank_of(stacked) == sum(rank for _, rank, _ in terms)
    fold = ProductSum()
    for a, weight in parts:
        fold = fold.plus(a, weight)
    close(fold.weights(), wanted)
    close(products.product_weights(fold.factors()), wanted)
    assert fold.weight == pytest.approx(sum(weight for _, weight in parts))


def test_a_fold_is_exact_before_and_after_it_forms_the_weights_and_stops_growing():
    fold, wanted = ProductSum(), dict.fromkeys(PATHS, 0.0)
    largest = sum(outputs * inputs for outputs, inputs in LARGE.values())
    kept = []
    for k in range(40):
        a, weight = make(k, 1 + k % 3, sizes=LARGE), 0.5 + k
        before = fold
        fold = fold.plus(a, weight)
        wanted = {p: wanted[p] + weight * formed(a)[p] for p in PATHS}
        close(fold.weights(), wanted, tolerance=1e-9)
        close(products.product_weights(fold.factors()), wanted, tolerance=1e-9)
        in_parts = sum(t.numel() for part, _ in fold.parts for t in part.values())
        in_weights = sum(t.numel() for t in (fold.formed or {}).values())
        assert 0 < in_parts + in_weights <= largest
        kept.append(fold.formed is None)
        assert (fold.parts == ()) == (fold.formed is not None)
        assert fold.weight == before.weight + weight
    # Several clients as factors, then weights for good.
    switch = kept.index(False)
    assert 2 < switch < 20
    assert not any(kept[switch:])


def test_a_fold_that_went_on_is_still_what_it_was():
    for count in (1, 40):  # before and after the switch
        fold = ProductSum()
        for k in range(count):
            fold = fold.plus(make(k, sizes=LARGE), 1.0)
        before = {path: weight.clone() for path, weight in fold.weights().items()}
        fold.plus(make(77, sizes=LARGE), 3.0)
        assert all(torch.equal(fold.weights()[path], before[path]) for path in PATHS)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_the_factors_of_a_sum_are_its_parts_or_of_full_rank(count):
    fold = ProductSum()
    for k in range(count):
        fold = fold.plus(make(k, 2, sizes=LARGE), 1.0)
    for path, (outputs, inputs) in LARGE.items():
        rank = 2 * count if fold.formed is None else inputs
        assert fold.factors()[path + A_SUFFIX].shape == (rank, inputs)
        assert fold.factors()[path + B_SUFFIX].shape == (outputs, rank)
    assert (fold.formed is None) == (count < 40)


# --- Singular values


@every_adapter
def test_decompose_is_numpys_svd_of_the_product(a):
    for path, weight in formed(a).items():
        a_in, b_out = a[path + A_SUFFIX], a[path + B_SUFFIX]
        u, s, vt = (t.numpy() for t in products.thin_svd(a_in, b_out))
        count = min(len(a_in), *weight.shape)
        assert (u.shape, s.shape, vt.shape) == (
            (len(weight), count), (count,), (count, weight.shape[1])
        )  # fmt: skip
        wanted = np.linalg.svd(weight, compute_uv=False)
        np.testing.assert_allclose(s, wanted[:count], rtol=0, atol=1e-10)
        np.testing.assert_allclose(wanted[count:], 0, atol=1e-10)
        np.testing.assert_allclose(u * s @ vt, weight, rtol=0, atol=1e-10)
        np.testing.assert_allclose(u.T @ u, np.eye(count), rtol=0, atol=1e-10)
        np.testing.assert_allclose(vt @ vt.T, np.eye(count), rtol=0, atol=1e-10)
        assert all(left >= right >= 0 for left, right in pairwise(s))


@every_adapter
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_truncation_misses_what_eckart_and_young_say_and_no_more(a, rank):
    best = products.truncate_rank(a, rank)
    for path, weight in formed(a).items():
        a_in, b_out = best[path + A_SUFFIX].numpy(), best[path + B_SUFFIX].numpy()
        assert (a_in.shape, b_out.shape) == ((rank, weight.shape[1]), (len(weight), rank))
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
        missed = np.linalg.norm(b_out @ a_in - weight)
        assert missed == pytest.approx(np.linalg.norm(s[rank:]), abs=1e-9)
        if rank < len(s) and s[rank - 1] - s[rank] > 1e-6:  # where the best one is unique
            np.testing.assert_allclose(
                b_out @ a_in, u[:, :rank] * s[:rank] @ vt[:rank], rtol=0, atol=1e-9
            )
        # B = U s, A = V^T, and zeros where the factors have fewer components than the rank
        has = min(rank, len(a[path + A_SUFFIX]), *weight.shape)
        unit, squares = np.zeros((rank, rank)), np.zeros((rank, rank))
        unit[:has, :has], squares[:has, :has] = np.eye(has), np.diag(s[:has] ** 2)
        np.testing.assert_allclose(a_in @ a_in.T, unit, rtol=0, atol=1e-10)
        np.testing.assert_allclose(b_out.T @ b_out, squares, rtol=0, atol=1e-9)


@settings(deadline=None)
@given(seeds_, seeds_, any_rank, ranks)
def test_no_other_adapter_of_the_rank_is_nearer_than_the_truncation(i, j, wide, rank):
    a = make(i, max(wide, rank))
    best = products.truncate_rank(a, rank)
    missed = np.linalg.norm(product(best) - product(a))
    nudged = adapters.add(best, adapters.scale(make(j, rank), 1e-3))
    for other in (make(j, rank), nudged, adapters.resize_rank(a, rank)):
        assert missed <= np.linalg.norm(product(other) - product(a)) + 1e-12


def test_a_layer_that_is_narrower_than_the_rank_keeps_its_weight():
    a = make(0, 9)
    best = products.truncate_rank(a, 4)  # one layer has 3 outputs
    narrow = min(formed(a), key=lambda path: min(formed(a)[path].shape))
    assert min(formed(a)[narrow].shape) == 3
    np.testing.assert_allclose(formed(best)[narrow], formed(a)[narrow], rtol=0, atol=1e-10)
    assert len(best[narrow + A_SUFFIX]) == 4


@every_adapter
def test_compact_keeps_the_product_in_as_few_components_as_it_has(a):
    small = products.compact_rank(a)
    for path, weight in formed(a).items():
        got = small[path + B_SUFFIX].numpy() @ small[path + A_SUFFIX].numpy()
        np.testing.assert_allclose(got, weight, rtol=0, atol=1e-10)
        rank = max(1, np.linalg.matrix_rank(weight))
        assert small[path + A_SUFFIX].shape == (rank, weight.shape[1])
        assert small[path + B_SUFFIX].shape == (len(weight), rank)


def test_what_is_added_and_taken_away_again_leaves_no_components():
    a, b = make(1), make(2)
    left = products.compact_rank(products.stack_components([(a, 1.0), (b, 3.0), (b, -3.0)]))
    assert adapters.rank_of(left) == adapters.rank_of(a)
    np.testing.assert_allclose(product(left), product(a), rtol=0, atol=1e-10)


# --- Rotations


@settings(deadline=None)
@given(seeds_, any_rank, st.integers(0, 20))
def test_a_rotation_is_orthogonal_and_nearer_than_any_other(seed, rank, other):
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 9, rank, generator=draw, dtype=torch.float64)
    q = products.procrustes_rotation(x.T @ y)
    np.testing.assert_allclose(q.T @ q, np.eye(rank), rtol=0, atol=1e-10)
    wanted, _ = scipy.linalg.orthogonal_procrustes(x.numpy(), y.numpy())
    np.testing.assert_allclose(q, wanted, rtol=0, atol=1e-8)
    nearest = float(torch.linalg.norm(x @ q - y))
    assert nearest <= float(torch.linalg.norm(x @ orthogonal(rank, other) - y)) + 1e-12


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_rotation_that_was_made_is_found(rank):
    draw = torch.Generator().manual_seed(rank)
    x, q = torch.randn(9, rank, generator=draw, dtype=torch.float64), orthogonal(rank, 3)
    torch.testing.assert_close(products.procrustes_rotation(x.T @ (x @ q)), q, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_turned_factors_are_other_factors_of_the_same_weights(rank, dtype):
    a = make(1, rank, dtype)
    turns = {path: orthogonal(rank, seed) for seed, path in enumerate(PATHS, start=2)}
    turned = products.rotate_factors(a, turns)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(product(turned), product(a), rtol=0, atol=tolerance)
    for path, q in turns.items():
        np.testing.assert_allclose(
            turned[path + B_SUFFIX], a[path + B_SUFFIX].double() @ q, rtol=0, atol=tolerance
        )
    assert {tensor.dtype for tensor in turned.values()} == {dtype}
    if rank > 1:
        assert not any(torch.allclose(turned[key], a[key]) for key in a)


# --- Inputs


@every_adapter
def test_inputs_are_never_changed(a):
    before = {key: tensor.clone() for key, tensor in a.items()}
    rank = adapters.rank_of(a)
    products.product_dot(a, a)
    turns = {path: torch.eye(rank, dtype=torch.float64) for path in PATHS}
    results = [
        products.product_change(a, a),
        products.stack_components([(a, 1.0)]),
        products.stack_components([(a, 1.0), (a, -1.0)]),
        products.truncate_rank(a, 1),
        products.compact_rank(a),
        products.rotate_factors(a, turns),
        ProductSum().plus(a, 2.0).factors(),
        ProductSum().plus(a, 2.0).weights(),
    ]
    for tensor in (tensor for result in results for tensor in result.values()):
        tensor.fill_(7.0)  # nor is what comes out a view of what went in
    assert all(torch.equal(a[key], before[key]) for key in a)
