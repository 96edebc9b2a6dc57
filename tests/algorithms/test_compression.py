"""Codecs: what they lose, what error feedback brings back, and what a hostile client may not do."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsdr.algorithms.compression import (
    RESIDUAL,
    Codec,
    TopK,
    fp16,
    half_codec,
    int8,
    rows_of_int8,
    top_k,
    topk,
    with_compression,
)
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fitted,
    NoOptions,
    Private,
    Round,
    Schedule,
    Setup,
    Stage,
    Update,
    check_update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.scaffold import Scaffold, scaffold
from fedsdr.core.adapters import Adapter, add, scale, size_in_bytes, zeros_like
from fedsdr.core.metrics import Mean
from support.toy_clients import CLIENTS, RECORDS, ToyClient, random_adapter

SETUP = Setup(Schedule(2, 0.1))
ROUND = Round(1, 7)
CODECS = {"half": half_codec(), "int8": rows_of_int8(), "top_k": top_k(TopK(share=0.3))}
TRANSFORMS = {
    "fp16": lambda inner: fp16(inner, NoOptions()),
    "int8": lambda inner: int8(inner, NoOptions()),
    "topk": lambda inner: topk(inner, TopK(share=0.3)),
}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
every_transform = pytest.mark.parametrize("name", TRANSFORMS)


def there_and_back(codec: Codec, adapter: Adapter) -> Adapter:
    return codec.decode(codec.encode(adapter), adapter)


def same_bits(a: Adapter, b: Adapter) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a
    )


def clone(adapter: Adapter) -> Adapter:
    return {key: tensor.clone() for key, tensor in adapter.items()}


def matrices(bound: float) -> st.SearchStrategy[torch.Tensor]:
    """float32 and float64 matrices of three columns, entries zero or within 1e-30 and `bound`."""
    size = st.floats(1e-30, bound)
    entry = st.just(0.0) | size | size.map(lambda x: -x)
    rows = st.lists(st.lists(entry, min_size=3, max_size=3), min_size=1, max_size=4)
    return st.builds(
        lambda rows, dtype: torch.tensor(rows, dtype=dtype),
        rows,
        st.sampled_from([torch.float32, torch.float64]),
    )


# What is lost


@settings(deadline=None)
@given(matrices(65504.0))
def test_float16_is_off_by_its_rounding(tensor):
    given = there_and_back(half_codec(), {"w": tensor})["w"]
    # Half a unit in the last of 11 bits, or half the smallest number there is; the rest is for
    # the rounding to float32 that comes first.
    bound = tensor.double().abs() * 2**-11 + 2**-25
    assert bool(((given - tensor).double().abs() <= bound * (1 + 1e-3)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float16_saturates_and_leaves_what_is_not_finite_to_be_refused(dtype):
    values = [1e30, -1e30, 65520.0, 65504.0, math.inf, -math.inf, math.nan]
    given = half_codec().encode({"w": torch.tensor(values, dtype=dtype)})["w"]
    assert given.dtype == torch.float16
    assert given[:6].tolist() == [65504, -65504, 65504, 65504, math.inf, -math.inf]
    assert given[6].isnan()


@settings(deadline=None)
@given(matrices(1e30))
def test_int8_is_off_by_half_a_scale_at_most(tensor):
    encoded = rows_of_int8().encode({"w": tensor})
    given = rows_of_int8().decode(encoded, {"w": tensor})["w"]
    expected = np.abs(tensor.double().numpy()).max(axis=1, keepdims=True) / 127
    assert encoded["w"].dtype == torch.int8
    assert encoded["w/scale"].dtype == torch.float32
    assert np.allclose(encoded["w/scale"].numpy(), expected, rtol=1e-6, atol=0)
    # The rest is for float32, of which the scale is.
    bound = encoded["w/scale"].double() * (0.5 + 1e-4)
    assert bool(((given - tensor).double().abs() <= bound).all())


def test_int8_by_hand():
    row = torch.tensor([[127.0, -63.6, 0.4, 0.6], [0, 0, 0, 0], [-254, 1.1, 3, 254]])
    encoded = rows_of_int8().encode({"w": row})
    assert encoded["w/scale"].tolist() == [[1], [0], [2]]
    assert encoded["w"].tolist() == [[127, -64, 0, 1], [0, 0, 0, 0], [-127, 1, 2, 127]]


@settings(deadline=None)
@given(matrices(1e30), st.floats(0.01, 1))
def test_top_k_keeps_the_largest_entries_as_they_are(tensor, share):
    codec = top_k(TopK(share=share))
    encoded = codec.encode({"w": tensor})
    given = codec.decode(encoded, {"w": tensor})["w"].flatten()
    index, flat = encoded["w/index"].long(), tensor.flatten()
    sizes = np.sort(np.abs(flat.numpy()))[::-1]
    assert encoded["w/index"].dtype == torch.int32
    assert encoded["w/value"].dtype == tensor.dtype
    assert bool((index.diff() > 0).all())
    assert np.array_equal(np.sort(np.abs(flat[index].numpy()))[::-1], sizes[: len(index)])
    assert torch.equal(given[index], flat[index])
    given[index] = 0
    assert not given.any()


@pytest.mark.parametrize(
    ("share", "entries", "kept"),
    [(0.1, 24, 3), (0.01, 24, 1), (0.07, 100, 7), (0.1, 30, 3), (1, 9, 9)],
)
def test_top_k_counts_upwards_and_as_the_share_is_written(share, entries, kept):
    """0.07 x 100 and 0.1 x 30 are a little more than 7 and 3 in binary floats."""
    ramp = {"w": torch.arange(1.0, entries + 1)}
    encoded = top_k(TopK(share=share)).encode(ramp)
    assert encoded["w/index"].tolist() == [*range(entries - kept, entries)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_k_of_everything_is_the_identity(dtype):
    adapter = random_adapter("any", dtype=dtype)
    assert same_bits(there_and_back(top_k(TopK(share=1)), adapter), adapter)


@every_codec
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_come_back_and_nothing_is_mutated(codec, dtype):
    adapter = {**random_adapter("any", dtype=dtype), "control/w": torch.ones(3, dtype=dtype)}
    adapter["zero"] = torch.zeros(2, 2, dtype=dtype)
    before = clone(adapter)
    given = there_and_back(codec, adapter)
    assert same_bits(adapter, before)
    assert given.keys() == adapter.keys()
    for key, tensor in adapter.items():
        assert (given[key].shape, given[key].dtype) == (tensor.shape, tensor.dtype)
    assert not given["zero"].any()


@every_codec
def test_what_was_decoded_is_encoded_without_a_loss(codec):
    once = there_and_back(codec, random_adapter("any", dtype=torch.float32))
    twice = there_and_back(codec, once)
    assert all(torch.allclose(once[key], twice[key], rtol=1e-6, atol=0) for key in once)


@every_codec
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_stays_so_for_the_server_to_refuse(codec, wrong):
    change = random_adapter("any")
    change["layers.0.x.lora_A.weight"][1, 2] = wrong
    with pytest.raises(ValueError, match="NaN or infinite"):
        check_update("ben", Update(codec.encode(change), 1), codec.encode(random_adapter("like")))


# Bytes


@pytest.mark.parametrize(
    ("codec", "bytes"),
    [
        (half_codec(), 2 * 16 * 1000),
        (rows_of_int8(), 16 * 1000 + 4 * 16),
        (top_k(TopK(share=0.1)), (4 + 4) * 1600),
        (top_k(TopK(share=0.001)), (4 + 4) * 16),
    ],
)
def test_sizes(codec, bytes):
    change = {"w": torch.randn(16, 1000, generator=torch.Generator().manual_seed(1))}
    assert size_in_bytes(codec.encode(change)) == bytes < size_in_bytes(change)


# Around an algorithm


class Given:
    """A client whose training moves `shared` by the changes it is given, one a round."""

    def __init__(self, changes: Sequence[Adapter]) -> None:
        self.changes = iter(changes)

    def __call__(self, stage: Stage) -> Fitted:
        after = add(stage.shared or {}, next(self.changes))
        return Fitted(3, Mean(1.0, 1), Private({}), Private({}), shared=after)


@every_codec
@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 5))
def test_what_arrives_and_what_is_kept_add_up_to_the_changes(codec, number, rounds):
    changes = [random_adapter(number, round) for round in range(rounds)]
    algorithm = with_compression(fedavg(SETUP), codec, feedback=True)
    shared, state, fit = zeros_like(changes[0]), ClientState(), Given(changes)
    total = zeros_like(shared)
    for number in range(1, rounds + 1):
        update, state = algorithm.client(shared, state, fit, Round(number, 0))
        total = add(total, codec.decode(update.change, shared))
    left = state.memory[RESIDUAL]
    for key in shared:
        wanted = sum(change[key] for change in changes)
        assert torch.allclose(total[key] + left[key], wanted, rtol=0, atol=1e-12)
    assert any(left[key].any() for key in left)


def test_without_feedback_nothing_is_kept():
    algorithm = with_compression(fedavg(SETUP), top_k(TopK()), feedback=False)
    shared = zeros_like(random_adapter("any"))
    _, state = algorithm.client(shared, ClientState(), Given([random_adapter("any")]), ROUND)
    assert state == ClientState()
    assert (
        fp16(fedavg(SETUP), NoOptions()).client(
            shared, ClientState(), Given([random_adapter("any")]), ROUND
        )[1]
        == ClientState()
    )


def test_feedback_sends_in_the_end_what_is_never_among_the_largest():
    """One entry of two is sent a round; the small one's residual grows until it is its turn."""
    steady = {"w.lora_A.weight": torch.tensor([[4.0, 1.0]])}
    shared = zeros_like(steady)
    kept, forgotten = (
        with_compression(fedavg(SETUP), top_k(TopK(share=0.5)), it) for it in (True, False)
    )
    sums = []
    for algorithm in (kept, forgotten):
        state, total = ClientState(), zeros_like(shared)
        for _ in range(10):
            update, state = algorithm.client(shared, state, Given([steady]), ROUND)
            total = add(total, top_k(TopK(share=0.5)).decode(update.change, shared))
        sums.append(total["w.lora_A.weight"].tolist())
    assert sums[1] == [[40, 0]]
    # By hand: the small one is sent at 5 in round 5, when the other has 4, and again at 10.
    assert sums[0] == [[36, 10]]


def test_tensors_that_are_not_sent_in_a_round_keep_their_residual():
    a, b = ({name: torch.tensor([[2.0, 1.0]])} for name in ("a.lora_A.weight", "b.lora_A.weight"))
    algorithm = with_compression(fedavg(SETUP), top_k(TopK(share=0.5)), feedback=True)
    state = ClientState(memory={"moment": a})
    for sent in (a, b):
        _, state = algorithm.client(zeros_like(sent), state, Given([sent]), ROUND)
    assert {key: t.tolist() for key, t in state.memory[RESIDUAL].items()} == {
        "a.lora_A.weight": [[0, 1]],
        "b.lora_A.weight": [[0, 1]],
    }
    assert state.memory["moment"] is a


def play(algorithm: Algorithm, cohort: Sequence[str] = CLIENTS, dtype=torch.float64, rounds=3):
    """The round loop: the server's state, and what was sent."""
    state = algorithm.init(random_adapter("first", dtype=dtype))
    clients = {name: ClientState() for name in cohort}
    sent = []
    for number in range(1, rounds + 1):
        round = Round(number, number, sum(RECORDS.values()))
        fold = algorithm.start(state, round)
        for name in cohort:
            update, clients[name] = algorithm.client(
                algorithm.broadcast(state), clients[name], ToyClient(name, dtype), round
            )
            check_update(name, update, algorithm.uploads(state, round))
            fold = algorithm.add(fold, update)
            sent.append(update)
        state = algorithm.finish(state, fold, round)
    return state, sent


def inners() -> dict[str, Algorithm]:
    return {"fedavg": fedavg(SETUP), "scaffold": scaffold(SETUP, Scaffold())}


@every_transform
@pytest.mark.parametrize("inner", inners())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loop_goes_round_with_encoded_updates(name, inner, dtype):
    plain, plainly_sent = play(inners()[inner], dtype=dtype)
    state, sent = play(TRANSFORMS[name](inners()[inner]), dtype=dtype)
    assert {tensor.dtype for tensor in state.adapter.values()} == {dtype}
    assert [it.weight for it in sent] == [it.weight for it in plainly_sent]
    assert all(it.metrics for it in sent)
    off = max(float((state.adapter[key] - plain.adapter[key]).abs().max()) for key in plain.adapter)
    assert 0 < off < {"fp16": 1e-3, "int8": 1e-2, "topk": 1.0}[name]


@every_transform
def test_the_order_of_clients_does_not_matter(name):
    (a, _), (b, _) = (play(TRANSFORMS[name](fedavg(SETUP)), c) for c in (CLIENTS, CLIENTS[::-1]))
    assert all(torch.allclose(a.adapter[k], b.adapter[k], rtol=0, atol=1e-12) for k in a.adapter)


@every_transform
def test_the_server_aggregates_what_was_decoded(name):
    algorithm = TRANSFORMS[name](fedavg(SETUP))
    codec = {"fp16": half_codec(), "int8": rows_of_int8(), "topk": top_k(TopK(share=0.3))}[name]
    state, sent = play(algorithm, rounds=1)
    first = random_adapter("first")
    for key in first:
        decoded = [codec.decode(update.change, first)[key] for update in sent]
        weights = torch.tensor([1, 3, 6]).double() / 10
        wanted = first[key] + torch.tensordot(weights, torch.stack(decoded), 1)
        assert torch.allclose(state.adapter[key], wanted, rtol=0, atol=1e-12)


def test_top_k_of_everything_is_the_inner_algorithm():
    whole, _ = play(topk(fedavg(SETUP), TopK(share=1)))
    assert same_bits(whole.adapter, play(fedavg(SETUP))[0].adapter)


@every_transform
def test_nothing_given_is_mutated(name):
    algorithm = TRANSFORMS[name](fedavg(SETUP))
    first = random_adapter("first")
    state, client = algorithm.init(first), ClientState()
    for _ in range(2):  # the second time with a residual
        given, kept = clone(first), {k: clone(a) for k, a in client.memory.items()}
        update, after = algorithm.client(first, client, ToyClient("ben"), ROUND)
        assert same_bits(first, given)
        assert all(same_bits(client.memory[k], kept[k]) for k in kept)
        client = after
    start = algorithm.start(state, ROUND)
    before = clone(update.change)
    once = algorithm.add(start, update)
    algorithm.add(once, update)
    again = algorithm.finish(state, algorithm.add(start, update), ROUND)
    assert same_bits(algorithm.finish(state, once, ROUND).adapter, again.adapter)
    assert same_bits(update.change, before)


# From outside


@pytest.mark.parametrize("index", [[0, 6], [-1, 2], [2, 1], [3, 3], [0, 2**31 - 1], [-(2**31), 0]])
def test_positions_that_cannot_be_are_refused(index):
    algorithm = topk(fedavg(SETUP), TopK(share=0.3))
    key = "w.lora_A.weight"
    state = algorithm.init({key: torch.zeros(2, 3)})
    hostile = {
        key + "/index": torch.tensor(index, dtype=torch.int32),
        key + "/value": torch.ones(2),
    }
    check_update("eve", Update(hostile, 1), algorithm.uploads(state, ROUND))
    with pytest.raises(ValueError, match=r"w\.lora_A\.weight must be ascending, from 0 to 5"):
        algorithm.add(algorithm.start(state, ROUND), Update(hostile, 1))


@every_transform
def test_updates_of_another_shape_or_not_encoded_are_refused(name):
    algorithm = TRANSFORMS[name](fedavg(SETUP))
    state = algorithm.init(random_adapter("first"))
    like = algorithm.uploads(state, ROUND)
    with pytest.raises(ValueError, match="update of client 'eve'"):
        check_update("eve", Update(random_adapter("plain"), 1), like)
    longer = {key: torch.cat([tensor, tensor]) for key, tensor in like.items()}
    with pytest.raises(ValueError, match="has shape"):
        check_update("eve", Update(longer, 1), like)


def test_int8_of_any_bytes_is_within_128_scales():
    every = torch.arange(-128, 128).to(torch.int8).reshape(2, 128)
    encoded = {"w": every, "w/scale": torch.tensor([[0.5], [-2.0]])}
    given = rows_of_int8().decode(encoded, {"w": torch.zeros(2, 128)})["w"]
    assert torch.equal(given, every.float() * encoded["w/scale"])


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
def test_shares_out_of_bounds(share):
    with pytest.raises(ValidationError):
        TopK(share=share)


def test_smaller_ranks_are_not_expected():
    ranked = fedavg(SETUP)._replace(ranks=frozenset({1}))
    assert int8(ranked, NoOptions()).ranks == frozenset()


@settings(deadline=None)
@given(st.floats(0.1, 10))
def test_int8_does_not_depend_on_the_unit(unit):
    change = random_adapter("any")
    a = rows_of_int8().encode(change)
    b = rows_of_int8().encode(scale(change, 2.0 ** round(math.log2(unit))))
    assert all(torch.equal(a[key], b[key]) for key in change)
