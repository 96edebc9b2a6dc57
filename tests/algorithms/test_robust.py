"""Robust aggregation against Flower's strategies and NumPy, its limits, and what it is for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from flwr.server.strategy import FedMedian, FedTrimmedAvg
from flwr.server.strategy import Krum as FlowerKrum
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsdr.algorithms.aggregation.folding import merge_folded
from fedsdr.algorithms.contract import (
    Algorithm,
    NoOptions,
    Round,
    Schedule,
    ServerState,
    Setup,
    Update,
    check_update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.robust.clipping import Clipping, clip_to_norm, with_clipping
from fedsdr.algorithms.robust.krum import Krum, krum
from fedsdr.algorithms.robust.median import median
from fedsdr.algorithms.robust.trimmed_mean import TrimmedMean, trimmed_mean
from fedsdr.algorithms.scaffold import Scaffold, scaffold
from fedsdr.algorithms.table import ROBUST
from fedsdr.core.adapters import Adapter, add, norm, scale, subtract, weighted_mean, zeros_like
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean
from support.flower_strategies import aggregate, arrays
from support.toy_clients import random_adapter
from support.toy_rounds import build, dense, furthest

SETUP = Setup(Schedule(1, 0.1))
ROUND = Round(1, 7)


def updates(count: int, dtype: torch.dtype = torch.float64) -> list[Update]:
    return [Update(random_adapter("client", k, dtype=dtype), 1 + k % 3) for k in range(count)]


def finished(algorithm: Algorithm, given: Sequence[Update]) -> ServerState:
    """One round from a global adapter of zeros: the new one is the aggregated change."""
    like = random_adapter("client", 0) if not given else given[0].change
    state = algorithm.init(zeros_like(like))
    fold = algorithm.start(state, ROUND)
    for update in given:
        check_update("one", update, algorithm.uploads(state, ROUND))
        fold = algorithm.add(fold, update)
    return algorithm.finish(state, fold, ROUND)


def flower(strategy, given: Sequence[Update]) -> list[np.ndarray]:
    return aggregate(strategy, [(update.change, int(update.weight)) for update in given])


def close(adapter: Adapter, expected: list[np.ndarray]) -> bool:
    pairs = zip(arrays(adapter), expected, strict=True)
    return all(np.allclose(a, b, rtol=0, atol=1e-12) for a, b in pairs)


def same_bits(a: Adapter, b: Adapter) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


TRANSFORMS = {
    "clipped": lambda inner: with_clipping(inner, Clipping(norm=2.0)),
    "median": lambda inner: median(inner, NoOptions()),
    "trimmed_mean": lambda inner: trimmed_mean(inner, TrimmedMean(share=0.25)),
    "krum": lambda inner: krum(inner, Krum(malicious=1, keep=2)),
}
every_transform = pytest.mark.parametrize("name", TRANSFORMS)


# Against Flower, which aggregates whatever arrays it is given: here the changes.


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_the_median_is_flowers(count):
    clients = updates(count)
    ours = finished(median(fedavg(SETUP), NoOptions()), clients).adapter
    assert close(ours, flower(FedMedian(), clients))


@pytest.mark.parametrize("count", [1, 2, 5, 8, 10])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.25, 0.49])
def test_the_trimmed_mean_is_flowers(count, share):
    clients = updates(count)
    ours = finished(trimmed_mean(fedavg(SETUP), TrimmedMean(share=share)), clients).adapter
    assert close(ours, flower(FedTrimmedAvg(beta=share), clients))


# Krum differs from Flower's in three points, which the cases avoid. Flower takes one neighbour
# where K - f - 2 < 1, and we refuse. It takes the first of each row's sorted distances for the
# client itself, which is wrong where another sent exactly the same. And it decides between equal
# scores, common with one neighbour, by order of arrival. Alike: squared distances over all tensors;
# Flower's 0 to keep is our 1. It weighs the kept by records, which here are told it as equal.
@pytest.mark.parametrize("count", [6, 7, 9])
@pytest.mark.parametrize("malicious", [0, 1, 2])
@pytest.mark.parametrize("keep", [1, 2, 5])
def test_krum_is_flowers(count, malicious, keep):
    clients = updates(count)
    options = Krum(malicious=malicious, keep=keep)
    theirs = FlowerKrum(
        num_malicious_clients=malicious, num_clients_to_keep=0 if keep == 1 else keep
    )
    state = finished(krum(fedavg(SETUP), options), clients)
    assert close(state.adapter, flower(theirs, [replace(it, weight=1) for it in clients]))
    assert state.metrics == {"robust/kept": Mean(keep, count)}


def test_a_share_is_taken_as_it_is_written():
    """floor(0.29 x 100) is 29, and 28 in binary floats, as in Flower."""
    key = "w.lora_A.weight"
    cubes = torch.arange(100.0, dtype=torch.float64) ** 3
    ramp = [Update({key: cube.reshape(1, 1)}, 1) for cube in cubes]
    ours = finished(trimmed_mean(fedavg(SETUP), TrimmedMean(share=0.29)), ramp).adapter
    assert ours[key].item() == pytest.approx(float(cubes[29:71].mean()), rel=1e-12)


# Clipping, by NumPy


@pytest.mark.parametrize("bound", [0.5, 4.0, 5.0, 100.0])
def test_clipping_is_that_of_the_vector_of_all_entries(bound):
    clients = updates(6)
    vectors = [np.concatenate([a.ravel() for a in arrays(it.change)]) for it in clients]
    lengths = [np.linalg.norm(vector) for vector in vectors]
    short = [v * min(1, bound / length) for v, length in zip(vectors, lengths, strict=True)]
    expected = np.mean(short, axis=0)
    state = finished(with_clipping(fedavg(SETUP), Clipping(norm=bound)), clients)
    ours = np.concatenate([a.ravel() for a in arrays(state.adapter)])
    assert np.allclose(ours, expected, rtol=0, atol=1e-14)
    assert state.metrics["robust/clipped"] == Mean(sum(x > bound for x in lengths), 6)


@settings(deadline=None)
@given(st.integers(0, 50), st.floats(1e-3, 1e3))
def test_what_is_clipped_keeps_its_direction_and_the_bound(number, bound):
    change = random_adapter(number)
    short = clip_to_norm(change, bound)
    assert norm(short) == pytest.approx(min(norm(change), bound), rel=1e-12)
    assert all(torch.allclose(short[k] * norm(change), change[k] * norm(short)) for k in change)


def test_within_the_bound_nothing_is_touched():
    for dtype in (torch.float32, torch.float64):
        change = random_adapter("any", dtype=dtype)
        assert clip_to_norm(change, norm(change)) is change
        assert clip_to_norm(change, math.inf) is change
    assert clip_to_norm({}, 1.0) == {}


# Limits


def test_clipping_at_infinity_is_the_unweighted_mean():
    clients = updates(5)
    state = finished(with_clipping(fedavg(SETUP), Clipping(norm=math.inf)), clients)
    assert same_bits(state.adapter, weighted_mean((it.change, 1.0) for it in clients))
    assert state.metrics["robust/clipped"] == Mean(0, 5)


def test_trimming_nothing_is_the_unweighted_mean():
    clients = updates(5)
    ours = finished(trimmed_mean(fedavg(SETUP), TrimmedMean(share=0)), clients).adapter
    assert close(ours, arrays(weighted_mean((it.change, 1.0) for it in clients)))


def test_trimming_all_it_can_is_the_median():
    ours = finished(trimmed_mean(fedavg(SETUP), TrimmedMean(share=0.4)), updates(5)).adapter
    assert same_bits(ours, finished(median(fedavg(SETUP), NoOptions()), updates(5)).adapter)


@pytest.mark.parametrize("keep", [5, 9])
def test_krum_that_keeps_all_is_the_unweighted_mean(keep):
    clients = updates(5)
    state = finished(krum(fedavg(SETUP), Krum(malicious=1, keep=keep)), clients)
    assert close(state.adapter, arrays(weighted_mean((it.change, 1.0) for it in clients)))
    assert state.metrics["robust/kept"] == Mean(5, 5)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum"])
def test_clients_that_agree_get_what_they_agree_on(name):
    same = [Update(random_adapter("same"), 1 + k) for k in range(4)]
    assert close(finished(TRANSFORMS[name](fedavg(SETUP)), same).adapter, arrays(same[0].change))


# What it is for


@every_transform
@pytest.mark.parametrize("size", [1e3, -1e6])
def test_one_giant_update_moves_the_mean_and_not_the_robust_ones(name, size):
    way = random_adapter("way")
    honest = [Update(add(way, scale(random_adapter(k), 0.1)), 2) for k in range(6)]
    hostile = Update(scale(random_adapter("hostile"), size), 2)
    wanted = finished(fedavg(SETUP), honest).adapter

    def off(algorithm: Algorithm) -> float:
        reached = finished(algorithm, [*honest[:3], hostile, *honest[3:]]).adapter
        return norm(subtract(reached, wanted)) / norm(wanted)

    assert off(fedavg(SETUP)) > abs(size) / 20
    # All are cut to length 2, so that the hostile one has a seventh of the say.
    assert off(TRANSFORMS[name](fedavg(SETUP))) < (1.0 if name == "clipped" else 0.2)


CLAIMS = {
    "clipping": [{"norm": 2.0}, {"norm": math.inf}],
    "median": [{}],
    "trimmed_mean": [{"share": 0.0}, {"share": 0.25}],
    "krum": [{"malicious": 1, "keep": keep} for keep in (1, 3, 7)],
}


@pytest.mark.parametrize("name", sorted(ROBUST.keys() - {"none"}))
@pytest.mark.parametrize("aggregation", ["factors", "flexlora", "fedex"])
def test_a_claimed_weight_moves_nothing(name, aggregation):
    """A modest update counts as one of seven, however many records its client says it has."""
    for options in CLAIMS[name]:
        sections = {"options": {name: options}}
        algorithm = build("+".join({name, aggregation} - {"factors"}), **sections)

        def moved(*weights: float, algorithm: Algorithm = algorithm) -> Adapter:
            given = [replace(it, weight=w) for it, w in zip(updates(7), weights, strict=True)]
            return dense(merge_folded(algorithm.deployed(finished(algorithm, given))))

        alike = moved(1, 1, 1, 1, 1, 1, 1)
        for claims in ((1, 1, 1, 1, 1, 1, 1e12), (5, 1e15, 1, 2, 1e15, 9, 1)):
            assert furthest(moved(*claims), alike) < 1e-12


# The contract


@every_transform
def test_the_order_of_arrival_does_not_matter(name):
    algorithm = TRANSFORMS[name](fedavg(SETUP))
    expected = finished(algorithm, updates(4))
    for order in permutations(updates(4)):
        state = finished(algorithm, order)
        assert close(state.adapter, arrays(expected.adapter))
        assert state.metrics == expected.metrics


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(6)), st.integers(0, 20), st.integers(1, 3))
def test_krum_is_the_same_bits_in_any_order_even_with_equal_scores(order, draw, keep):
    """With one neighbour each, the two closest updates always score the same."""
    clients = [Update(random_adapter(draw, k), 1 + k) for k in range(6)]
    algorithm = krum(fedavg(SETUP), Krum(malicious=3, keep=keep))
    a = finished(algorithm, clients).adapter
    b = finished(algorithm, [clients[k] for k in order]).adapter
    assert same_bits(a, b)


@every_transform
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept_and_nothing_is_mutated(name, dtype):
    clients = updates(5, dtype)
    before = [{key: t.clone() for key, t in update.change.items()} for update in clients]
    state = finished(TRANSFORMS[name](fedavg(SETUP)), clients)
    assert {tensor.dtype for tensor in state.adapter.values()} == {dtype}
    assert all(same_bits(it.change, kept) for it, kept in zip(clients, before, strict=True))


@every_transform
def test_a_fold_can_be_added_to_twice(name):
    algorithm = TRANSFORMS[name](fedavg(SETUP))
    state = algorithm.init(zeros_like(random_adapter("client", 0)))
    clients = updates(6)
    half = algorithm.start(state, ROUND)
    for update in clients[:4]:
        half = algorithm.add(half, update)
    algorithm.add(half, clients[5])
    again = algorithm.finish(state, algorithm.add(half, clients[4]), ROUND)
    assert same_bits(again.adapter, finished(algorithm, clients[:5]).adapter)


@every_transform
def test_all_tensors_are_treated_alike_and_inner_metrics_stay(name):
    """SCAFFOLD's control variates come out as the same rule makes them out of the clients'."""
    inner = scaffold(SETUP, Scaffold())
    loud = inner._replace(
        finish=lambda state, fold, round: ServerState(
            fold.mean(like=inner.uploads(state, round)), metrics={"inner": Mean(1, fold.weight)}
        )
    )
    clients = [
        Update(dict(part.change) | {"control/" + k: t + 1 for k, t in part.change.items()}, 2)
        for part in updates(5)
    ]
    robust = TRANSFORMS[name]
    state = inner.init(zeros_like(random_adapter("client", 0)))
    algorithm = robust(loud)
    fold = algorithm.start(state, ROUND)
    for update in clients:
        fold = algorithm.add(fold, update)
    given = algorithm.finish(state, fold, ROUND)
    assert close(given.adapter, arrays(finished(robust(fedavg(SETUP)), clients).adapter))
    assert given.metrics["inner"] == Mean(1, 5)  # as heavy as there are updates


@every_transform
def test_a_round_without_participants_is_the_inner_algorithms_error(name):
    with pytest.raises(ValueError, match="more than 0"):
        finished(TRANSFORMS[name](fedavg(SETUP)), [])


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum"])
def test_updates_of_unequal_shapes_are_not_expected(name):
    ranked = fedavg(SETUP)._replace(ranks=frozenset({1}))
    assert TRANSFORMS[name](ranked).ranks == frozenset()


@pytest.mark.parametrize(("count", "malicious"), [(4, 2), (3, 1)])
def test_krum_needs_enough_clients_to_compare(count, malicious):
    with pytest.raises(UserError, match=f"malicious = {malicious} needs at least") as caught:
        finished(krum(fedavg(SETUP), Krum(malicious=malicious)), updates(count))
    assert f"there are {count}" in str(caught.value)
    assert f"set malicious to {count - 3} or less" in str(caught.value)


def test_krum_of_two_clients_cannot_be():
    with pytest.raises(UserError, match="at least 3 clients in a round, and there are 2"):
        finished(krum(fedavg(SETUP), Krum(malicious=0)), updates(2))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (Clipping, {"norm": 0}),
        (Clipping, {"norm": -1}),
        (Clipping, {"norm": math.nan}),
        (TrimmedMean, {"share": 0.5}),
        (TrimmedMean, {"share": -0.1}),
        (TrimmedMean, {"share": math.nan}),
        (Krum, {"malicious": -1}),
        (Krum, {"keep": 0}),
        (Krum, {"kept": 1}),
    ],
)
def test_options_out_of_bounds(options, wrong):
    with pytest.raises(ValidationError):
        options(**wrong)
