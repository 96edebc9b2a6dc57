"""What leaves a client is bounded, the noise is there once and as large as it says, and epsilon is
that of the analytic Gaussian mechanism."""

import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import brentq
from scipy.stats import kstest
from scipy.stats import norm as gaussian

from fedsdr.algorithms.accounting import single_epsilon
from fedsdr.algorithms.compression import TopK, topk
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fitted,
    Round,
    Schedule,
    ServerState,
    Setup,
    Stage,
    Update,
    check_update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.privacy import (
    PrivacyOptions,
    add_noise,
    central_privacy,
    local_noise,
    with_failures_hidden,
)
from fedsdr.algorithms.scaffold import Scaffold, scaffold
from fedsdr.core.adapters import (
    Adapter,
    Private,
    add,
    norm,
    resize_rank,
    scale,
    subtract,
    zeros_like,
)
from fedsdr.core.metrics import Mean
from fedsdr.core.seeds import SECRET_BYTES, derive_secret, secret_gaussian
from support.toy_clients import random_adapter, secret_round

SETUP = Setup(Schedule(1, 0.1))
ROUND = secret_round(1, 7)
LOUD = {"x.lora_A.weight": (200, 300), "y.lora_A.weight": (200, 300)}

both = pytest.mark.parametrize("transform", [central_privacy, local_noise])


def silent(dtype: torch.dtype = torch.float64) -> Adapter:
    """Two large tensors of zeros, so that what comes of them is the noise."""
    return {key: torch.zeros(shape, dtype=dtype) for key, shape in LOUD.items()}


def trained(change: Adapter, records: int = 5) -> Any:
    """A client whose training moves `shared` by `change`."""

    def fit(stage: Stage) -> Fitted:
        after = add(stage.shared or {}, change)
        gradient = change if stage.mean_gradient else {}
        return Fitted(
            records, Mean(2.0, 1), Private({}), Private({}), shared=after, gradient=gradient
        )

    return fit


def sent(algorithm: Algorithm, change: Adapter, round: Round = ROUND) -> Update:
    """What a client sends whose training found `change`."""
    shared = algorithm.broadcast(algorithm.init(zeros_like(change)))
    return algorithm.client(shared, ClientState(), trained(change), round)[0]


def finished(algorithm: Algorithm, updates: Sequence[Update], round: Round = ROUND) -> ServerState:
    """One round from a global adapter of zeros: the new one is the aggregated change."""
    state = algorithm.init(zeros_like(updates[0].change))
    fold = algorithm.start(state, round)
    for update in updates:
        check_update("one", update, algorithm.uploads(state, round))
        fold = algorithm.add(fold, update)
    return algorithm.finish(state, fold, round)


def same_bits(a: Adapter, b: Adapter) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a
    )


def flat(adapter: Adapter) -> torch.Tensor:
    return torch.cat([adapter[key].flatten() for key in sorted(adapter)])


# What leaves a client


@both
@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 50))
def test_a_client_sends_a_bounded_change_and_nothing_else(transform, clip, number):
    change = random_adapter(number)
    algorithm = transform(fedavg(SETUP), PrivacyOptions(clip=clip, noise_multiplier=0))
    update = sent(algorithm, change)
    assert norm(update.change) == pytest.approx(min(clip, norm(change)), rel=1e-12)
    assert (update.weight, update.metrics) == (1.0, {})


@both
def test_what_an_algorithm_sends_beside_the_factors_is_within_the_bound_too(transform):
    algorithm = transform(scaffold(SETUP, Scaffold()), PrivacyOptions(clip=0.5, noise_multiplier=0))
    update = sent(algorithm, random_adapter("change"))
    assert any(key.startswith("control/") for key in update.change)
    assert norm(update.change) == pytest.approx(0.5, rel=1e-12)


def test_what_a_client_keeps_is_the_inner_algorithms():
    inner = scaffold(SETUP, Scaffold())
    change = random_adapter("change")
    shared = inner.broadcast(inner.init(zeros_like(change)))
    for transform in (central_privacy, local_noise):
        algorithm = transform(inner, PrivacyOptions())
        _, state = algorithm.client(shared, ClientState(), trained(change), ROUND)
        _, plain = inner.client(shared, ClientState(), trained(change), ROUND)
        assert same_bits(state.memory["control/"], plain.memory["control/"])


def test_a_client_whose_training_fails_sends_zeros_like_any_other_and_keeps_its_state():
    """What it sends has the weight, keys and shapes of a change: under noise the two look alike."""
    change = random_adapter("change")
    diverged = scale(change, math.nan)
    noted: list[Exception] = []
    hidden = with_failures_hidden(fedavg(SETUP), change, noted.append)

    def failing(stage: Stage) -> Fitted:
        raise RuntimeError("of record 7")

    for rank, fit in ((None, failing), (None, trained(diverged)), (1, failing)):
        before = ClientState({"kept": Private({})}, rank=rank)
        update, after = hidden.client(zeros_like(change), before, fit, ROUND)
        assert after is before
        like = change if rank is None else resize_rank(change, rank)
        assert same_bits(update.change, zeros_like(like))
        assert (update.weight, update.metrics) == (1.0, {})
    assert [str(error)[:11] for error in noted] == ["of record 7", "update of c", "of record 7"]
    assert same_bits(sent(hidden, change).change, change)


# Central noise


@pytest.mark.parametrize("clip", [0.01, 1.0])
@pytest.mark.parametrize("count", [1, 4])
def test_a_hostile_client_has_no_more_to_say_than_an_honest_one(clip, count):
    """Neither by length nor by weight."""
    algorithm = central_privacy(fedavg(SETUP), PrivacyOptions(clip=clip, noise_multiplier=0))
    honest = [Update(zeros_like(random_adapter("any")), 1.0)] * (count - 1)
    hostile = Update(scale(random_adapter("hostile"), 1e9), 1e9)
    moved = finished(algorithm, [*honest, hostile]).adapter
    assert norm(moved) == pytest.approx(clip / count, rel=1e-12)


@pytest.mark.parametrize(("clip", "z"), [(1.0, 1.0), (0.5, 3.0), (10.0, 0.2)])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_the_sum_has_the_noise_once_whatever_the_number_of_clients(clip, z, count):
    algorithm = central_privacy(fedavg(SETUP), PrivacyOptions(clip=clip, noise_multiplier=z))
    mean = flat(finished(algorithm, [Update(silent(), 1.0)] * count).adapter)
    drawn = mean * count / (z * clip)
    assert drawn.std().item() == pytest.approx(1, rel=0.01)  # 120 000 draws: 5 sigma are 0.01
    assert abs(drawn.mean().item()) < 5 / math.sqrt(len(drawn))
    assert kstest(drawn.numpy(), "norm").pvalue > 0.001
    alone = flat(finished(algorithm, [Update(silent(), 1.0)]).adapter)
    assert torch.allclose(mean * count, alone, rtol=1e-12)


def test_the_noise_is_added_to_the_sum_of_the_clipped_changes():
    changes = [random_adapter(k) for k in range(5)]
    options = PrivacyOptions(clip=1.0, noise_multiplier=0.5)
    noisy = finished(central_privacy(fedavg(SETUP), options), [Update(c, 1.0) for c in changes])
    zero = [Update(zeros_like(changes[0]), 1.0)] * 5
    noise = finished(central_privacy(fedavg(SETUP), options), zero)
    for key in changes[0]:
        wanted = sum(change[key] / norm(change) for change in changes) / 5
        found = noisy.adapter[key] - noise.adapter[key]
        assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_draws_of_tensors_rounds_and_clients_are_unrelated():
    options = PrivacyOptions()
    algorithm = local_noise(fedavg(SETUP), options)
    x, y = sent(algorithm, silent()).change.values()
    again = sent(algorithm, silent(), secret_round(1, 8)).change["x.lora_A.weight"]
    server = finished(
        central_privacy(fedavg(SETUP), options), [Update(silent(), 1.0)], secret_round(1, 9)
    ).adapter
    draws = torch.stack([it.flatten() for it in (x, y, again, server["x.lora_A.weight"])])
    related = torch.corrcoef(draws) - torch.eye(4)
    assert related.abs().max().item() < 5 / math.sqrt(draws.shape[1])


def test_every_bit_of_the_secret_decides_the_noise():
    """None of 256 bits may be left out, or those that remain could be tried one by one."""
    secret = bytes(range(SECRET_BYTES))
    flipped = [
        bytes(byte ^ (1 << bit % 8 if k == bit // 8 else 0) for k, byte in enumerate(secret))
        for bit in range(8 * SECRET_BYTES)
    ]
    zero = {"x": torch.zeros(3, dtype=torch.float64)}
    drawn = [add_noise(zero, 1.0, each)["x"] for each in (secret, *flipped)]
    assert len({tuple(draws.tolist()) for draws in drawn}) == len(drawn)
    assert torch.equal(drawn[0], add_noise(zero, 1.0, secret)["x"])


def test_noise_without_a_secret_is_an_error():
    with pytest.raises(AssertionError):
        add_noise(silent(), 1.0, derive_secret(b"", "client", 1, "anna"))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (501, 399)])
def test_noise_is_normal_to_its_tails_and_its_draws_are_unrelated(shape):
    drawn = secret_gaussian(b"secret", shape)
    assert (drawn.shape, drawn.dtype) == (torch.Size(shape), torch.float64)
    if drawn.numel() > 3:
        x, n = drawn.flatten(), drawn.numel()
        assert kstest(x.numpy(), "norm").pvalue > 0.01
        for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
            spread = math.sqrt(math.prod(range(1, 2 * power, 2)) / n)
            assert abs((x**power).mean().item() - moment) < 4 * spread
        assert 4 < x.abs().max().item() < 6
        for lag in (1, n // 2, n // 2 + 1):  # the halves are cosines and sines of one angle
            assert abs((x * x.roll(lag)).mean().item()) < 4 / math.sqrt(n)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_without_noise_or_bound_it_is_fedavg_of_equal_weights(count):
    nothing = PrivacyOptions(clip=math.inf, noise_multiplier=0)
    for dtype in (torch.float32, torch.float64):
        updates = [Update(random_adapter(k, dtype=dtype), 1.0) for k in range(count)]
        plain = finished(fedavg(SETUP), updates).adapter
        ours = finished(central_privacy(fedavg(SETUP), nothing), updates).adapter
        if dtype == torch.float32:
            assert same_bits(ours, plain)
        else:  # the mean goes through a multiplication and a division by the number of clients
            assert all(torch.allclose(ours[k], plain[k], rtol=1e-15, atol=0) for k in plain)
        assert same_bits(finished(local_noise(fedavg(SETUP), nothing), updates).adapter, plain)


def test_an_inner_algorithm_is_given_the_noisy_mean_alone():
    """So that what it computes, be it nonlinear in the updates, cannot take more from them."""
    seen: list[Update] = []

    def spy(fold: Any, update: Update) -> Any:
        seen.append(update)
        return fedavg(SETUP).add(fold, update)

    algorithm = central_privacy(fedavg(SETUP)._replace(add=spy), PrivacyOptions())
    finished(algorithm, [Update(random_adapter(k), 1.0) for k in range(4)])
    assert [update.weight for update in seen] == [4.0]


@both
def test_the_order_of_clients_does_not_matter_and_draws_repeat(transform):
    algorithm = transform(fedavg(SETUP), PrivacyOptions())
    updates = [Update(random_adapter(k), 1.0) for k in range(5)]
    a, b, c = (finished(algorithm, it).adapter for it in (updates, updates, updates[::-1]))
    assert same_bits(a, b)
    assert all(torch.allclose(a[key], c[key], rtol=0, atol=1e-12) for key in a)


def test_a_round_without_participants_is_an_error():
    algorithm = central_privacy(fedavg(SETUP), PrivacyOptions())
    state = algorithm.init(random_adapter("first"))
    with pytest.raises(ValueError, match="more than 0"):
        algorithm.finish(state, algorithm.start(state, ROUND), ROUND)


def test_updates_of_unequal_shapes_are_not_expected():
    ranked = fedavg(SETUP)._replace(ranks=frozenset({1}))
    assert central_privacy(ranked, PrivacyOptions()).ranks == frozenset()
    assert local_noise(ranked, PrivacyOptions()).ranks == frozenset({1})


# Local noise


@pytest.mark.parametrize(("clip", "z"), [(1.0, 1.0), (0.5, 3.0)])
def test_a_client_adds_its_noise_after_clipping(clip, z):
    change = {**silent(), "x.lora_A.weight": torch.ones(200, 300, dtype=torch.float64)}
    quiet = sent(local_noise(fedavg(SETUP), PrivacyOptions(clip=clip, noise_multiplier=0)), change)
    loud = sent(local_noise(fedavg(SETUP), PrivacyOptions(clip=clip, noise_multiplier=z)), change)
    drawn = flat(subtract(loud.change, quiet.change)) / (z * clip)
    assert norm(quiet.change) == pytest.approx(clip)
    assert drawn.std().item() == pytest.approx(1, rel=0.01)
    assert kstest(drawn.numpy(), "norm").pvalue > 0.001
    assert (loud.weight, loud.metrics) == (1.0, {})


def test_the_server_takes_local_noise_as_it_is():
    algorithm = local_noise(fedavg(SETUP), PrivacyOptions(clip=0.1, noise_multiplier=1))
    updates = [sent(algorithm, silent(), secret_round(1, seed)) for seed in range(4)]
    moved = finished(algorithm, updates).adapter
    assert min(norm(update.change) for update in updates) > 10 * 0.1
    # Four independent noises: their mean has half the deviation.
    assert flat(moved).std().item() == pytest.approx(0.1 / 2, rel=0.01)


# The contract


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept_and_nothing_is_mutated(transform, dtype):
    algorithm = transform(fedavg(SETUP), PrivacyOptions())
    change = random_adapter("change", dtype=dtype)
    before = {key: tensor.clone() for key, tensor in change.items()}
    update = sent(algorithm, change)
    moved = finished(algorithm, [update, Update(change, 1.0)]).adapter
    assert {tensor.dtype for tensor in [*update.change.values(), *moved.values()]} == {dtype}
    assert same_bits(change, before)


def test_a_fold_can_be_added_to_twice():
    algorithm = central_privacy(fedavg(SETUP), PrivacyOptions())
    updates = [Update(random_adapter(k), 1.0) for k in range(3)]
    state = algorithm.init(zeros_like(updates[0].change))
    once = algorithm.add(algorithm.start(state, ROUND), updates[0])
    algorithm.add(once, updates[1])
    moved = algorithm.finish(state, algorithm.add(once, updates[2]), ROUND)
    assert same_bits(moved.adapter, finished(algorithm, updates[::2]).adapter)


@both
def test_a_codec_goes_around_privacy(transform):
    options = PrivacyOptions(clip=0.5, noise_multiplier=0)
    algorithm = topk(transform(fedavg(SETUP), options), TopK(share=1))
    update = sent(algorithm, random_adapter("change"))
    state = algorithm.init(zeros_like(random_adapter("change")))
    fold = algorithm.add(algorithm.start(state, ROUND), update)
    assert norm(algorithm.finish(state, fold, ROUND).adapter) == pytest.approx(0.5)
    assert update.metrics == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip": 0},
        {"clip": -1},
        {"clip": math.nan},
        {"noise_multiplier": -1},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": math.nan},
        {"delta": 1e-5},
    ],
)
def test_options_out_of_bounds(wrong):
    with pytest.raises(ValidationError):
        PrivacyOptions(**wrong)


# Accounting


def analytic(z: float, releases: int, delta: float) -> float:
    """Balle and Wang 2018 (arXiv 1805.06530), Theorem 8, with mu = sqrt(T) / z."""
    mu = math.sqrt(releases) / z

    def excess(eps: float) -> float:
        second = math.exp(eps + gaussian.logcdf(-mu / 2 - eps / mu))
        return gaussian.cdf(mu / 2 - eps / mu) - second - delta

    end = 1.0
    while excess(end) > 0:
        end *= 2
    return float(brentq(excess, 0, end))


@pytest.mark.parametrize("delta", [1e-5, 1e-3])
@pytest.mark.parametrize(
    ("z", "releases"),
    [(1, 1), (1, 100), (5, 10), (0.5, 3), (20, 1000), (0.3, 50), (0.1, 10), (50, 1)],
)
def test_epsilon_is_that_of_the_analytic_gaussian_mechanism(z, releases, delta):
    expected = analytic(z, releases, delta)
    assert single_epsilon(z, releases, delta, local=False) == pytest.approx(expected, rel=0.01)
    # Two changes are up to twice as far apart as one is from none.
    assert single_epsilon(2 * z, releases, delta, local=True) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("z", "releases"), [(0.0099, 1), (0.05, 1000), (0.01, 50)])
def test_next_to_no_noise_has_a_bound(z, releases):
    expected = analytic(z, releases, 1e-5)
    assert expected < single_epsilon(z, releases, 1e-5, local=False) < 1.02 * expected


def test_no_noise_is_too_little_to_be_accounted_for():
    assert single_epsilon(1e-9, 10**6, 1e-5, local=True) > 1e20


def test_a_published_epsilon():
    """The classical calibration, z = sqrt(2 ln(1.25 / delta)), promises epsilon = 1, and holds."""
    z = math.sqrt(2 * math.log(1.25 / 1e-5))
    assert 0.5 < single_epsilon(z, 1, 1e-5, local=False) < 1


@settings(deadline=None, max_examples=20)
@given(st.floats(0.5, 20), st.integers(1, 200))
@example(0.515625, 151)  # the library's search overflows on the way, to no harm
def test_more_noise_costs_less_and_more_rounds_cost_more(z, releases):
    here = single_epsilon(z, releases, 1e-5, local=False)
    assert single_epsilon(2 * z, releases, 1e-5, local=False) < here
    assert single_epsilon(z, 2 * releases, 1e-5, local=False) > here
    assert single_epsilon(z, releases, 1e-6, local=False) > here


@pytest.mark.parametrize("local", [False, True])
def test_nothing_released_costs_nothing_and_no_noise_protects_nothing(local):
    assert single_epsilon(0, 0, 1e-5, local) == single_epsilon(1, 0, 1e-5, local) == 0
    assert single_epsilon(0, 1, 1e-5, local) == math.inf


@pytest.mark.parametrize(
    "wrong", [(-1, 1, 0.1), (1, -1, 0.1), (1, 1, 0), (1, 1, 1), (math.nan, 1, 0.1)]
)
def test_what_has_no_epsilon(wrong):
    with pytest.raises(ValueError, match="must"):
        single_epsilon(*wrong, local=False)


def test_the_accountant_is_imported_only_where_it_is_used():
    code = "import sys, fedsdr.algorithms.accounting; sys.exit('dp_accounting' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
