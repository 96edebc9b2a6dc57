"""Server optimisers against Flower, torch and the papers: changes and weights give an adapter."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.common import ndarrays_to_parameters
from flwr.server import strategy as flwr

from fedsdr.algorithms.contract import (
    Algorithm,
    ServerState,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedopt import (
    FIRST,
    SECOND,
    Adaptive,
    FedAdagrad,
    FedAvgM,
    fedadagrad,
    fedadam,
    fedavgm,
    fedyogi,
)
from fedsdr.core.adapters import (
    Adapter,
    add,
    scale,
    weighted_mean,
    zeros_like,
)
from support import flower_strategies
from support.parabola_clients import scalar
from support.toy_clients import random_adapter
from support.toy_rounds import SETUP, aggregate, build, furthest, play, same_bits

COUNTS = (1, 3, 6)
LR, BETA1, BETA2, TAU = 0.3, 0.8, 0.9, 0.05
ADAPTIVE = Adaptive(lr=LR, beta1=BETA1, beta2=BETA2, tau=TAU)

Changes = list[tuple[Adapter, int]]


def changes_of(number: int) -> Changes:
    """A round's updates: random, of unequal weights, larger in later rounds."""
    return [
        (scale(random_adapter("change", number, k), 0.3 * number), n) for k, n in enumerate(COUNTS)
    ]


def first() -> Adapter:
    return random_adapter("first")


def ours(
    algorithm: Callable[[int], Algorithm], state: ServerState, rounds: int = 3
) -> list[ServerState]:
    """The states after each round; the algorithm may be another in each."""
    states = []
    for number in range(1, rounds + 1):
        state = aggregate(algorithm(number), state, changes_of(number), number)
        states.append(state)
    return states


def flowers(strategy: Any, start: Adapter, rounds: int = 3) -> list[Adapter]:
    """The same of Flower, whose clients send parameters: what they were given, changed."""
    current, after = start, []
    for number in range(1, rounds + 1):
        sent = [(add(current, change), n) for change, n in changes_of(number)]
        arrays = flower_strategies.aggregate(strategy, sent, number)
        named = zip(sorted(start), arrays, strict=True)
        current = {key: torch.from_numpy(np.asarray(array)) for key, array in named}
        after.append(current)
    return after


def initial(start: Adapter) -> dict[str, Any]:
    return {"initial_parameters": ndarrays_to_parameters(flower_strategies.arrays(start))}


def assert_near(states: Sequence[ServerState], wanted: Sequence[Adapter]) -> None:
    for state, adapter in zip(states, wanted, strict=True):
        assert furthest(state.adapter, adapter) < 1e-12


@pytest.mark.parametrize(
    ("algorithm", "strategy"),
    [
        (fedavg(SETUP), lambda start: flwr.FedAvg()),
        (
            fedavgm(SETUP, FedAvgM(lr=0.7, momentum=0.6)),
            lambda start: flwr.FedAvgM(
                server_learning_rate=0.7, server_momentum=0.6, **initial(start)
            ),
        ),
        (
            fedavgm(SETUP, FedAvgM(lr=1.5, momentum=0.0)),
            lambda start: flwr.FedAvgM(
                server_learning_rate=1.5, server_momentum=0.0, **initial(start)
            ),
        ),
    ],
    ids=["fedavg", "fedavgm", "fedavgm without momentum"],
)
def test_averages_are_flowers(algorithm, strategy):
    states = ours(lambda number: algorithm, algorithm.init(first()))
    assert_near(states, flowers(strategy(first()), first()))
    assert furthest(states[-1].adapter, first()) > 0.1


class Case(NamedTuple):
    """An adaptive optimiser, Flower's of the same name, and Flower's factor on lr by round."""

    build: Callable[[float], Algorithm]
    flower: Callable[..., Any]
    options: dict[str, float]
    factor: Callable[[int], float] = lambda number: 1.0


def kingma(number: int) -> float:
    """Flower's bias correction of FedAdam; its exponent is one more than Adam's."""
    return math.sqrt(1 - BETA2 ** (number + 1)) / (1 - BETA1 ** (number + 1))


ETA = {"eta": LR, "tau": TAU}
BETAS = {"beta_1": BETA1, "beta_2": BETA2}
CASES = {
    "fedadagrad": Case(
        lambda lr: fedadagrad(SETUP, FedAdagrad(lr=lr, tau=TAU)), flwr.FedAdagrad, ETA
    ),
    "fedadam": Case(
        lambda lr: fedadam(SETUP, ADAPTIVE.model_copy(update={"lr": lr})),
        flwr.FedAdam,
        ETA | BETAS,
        kingma,
    ),
    "fedyogi": Case(
        lambda lr: fedyogi(SETUP, ADAPTIVE.model_copy(update={"lr": lr})),
        flwr.FedYogi,
        ETA | BETAS,
    ),
}
every_adaptive = pytest.mark.parametrize("name", CASES)


def flowers_start(state: ServerState) -> ServerState:
    """v_0 = 0, where the paper (Algorithm 2) has tau^2."""
    return replace(state, memory={**state.memory, SECOND: zeros_like(state.adapter)})


@every_adaptive
def test_adaptive_optimisers_are_flowers_but_for_its_start_and_its_bias_correction(name):
    case = CASES[name]
    start = case.build(LR).init(first())
    wanted = flowers(case.flower(**case.options, **initial(first())), first())
    adjusted = ours(lambda number: case.build(LR * case.factor(number)), flowers_start(start))
    assert_near(adjusted, wanted)
    # Neither of the two differences is nothing.
    papers = ours(lambda number: case.build(LR * case.factor(number)), start)
    assert furthest(papers[0].adapter, wanted[0]) > 1e-3
    if name == "fedadam":
        uncorrected = ours(lambda number: case.build(LR), flowers_start(start))
        assert furthest(uncorrected[0].adapter, wanted[0]) > 1e-3


SECONDS = {
    "fedadagrad": lambda v, d: v + d**2,
    "fedadam": lambda v, d: BETA2 * v + (1 - BETA2) * d**2,
    "fedyogi": lambda v, d: v - (1 - BETA2) * d**2 * np.sign(v - d**2),
}


@every_adaptive
def test_adaptive_optimisers_are_the_papers(name):
    """Reddi et al. 2021, Algorithm 2, with weights n_k / n for its 1 / |S|."""
    algorithm = CASES[name].build(LR)
    beta1 = 0.0 if name == "fedadagrad" else BETA1
    states = ours(lambda number: algorithm, algorithm.init(first()))
    for key, start in first().items():
        x = start.numpy()
        m, v = np.zeros_like(x), np.full_like(x, TAU**2)
        for number, state in enumerate(states, start=1):
            d = sum(change[key].numpy() * n for change, n in changes_of(number)) / sum(COUNTS)
            m = beta1 * m + (1 - beta1) * d
            v = SECONDS[name](v, d)
            x = x + LR * m / (np.sqrt(v) + TAU)
            for got, wanted in [
                (state.adapter[key], x),
                (state.memory[FIRST][key], m),
                (state.memory[SECOND][key], v),
            ]:
                assert np.abs(got.numpy() - wanted).max() < 1e-12


@pytest.mark.parametrize(
    ("name", "after"),
    [
        # tau = 0.5, so v_0 = 0.25; the changes are 2 and then 0: D^2 = 4 and then 0.
        ("fedadagrad", (4.25, 4.25)),
        ("fedadam", (0.625, 0.5625)),  # 0.9 x 0.25 + 0.1 x 4, then 0.9 x 0.625
        ("fedyogi", (0.65, 0.65)),  # 0.25 + 0.1 x 4, then no change
    ],
)
def test_the_second_moment_is_of_the_change_and_not_of_the_momentum(name, after):
    """The momentum, 0.4 and then 0.32, would have given 0.1536 more in two rounds of Adagrad."""
    options = {"beta1": 0.8, "tau": 0.5}
    algorithm = {
        "fedadagrad": fedadagrad(SETUP, FedAdagrad(**options)),
        "fedadam": fedadam(SETUP, Adaptive(**options, beta2=0.9)),
        "fedyogi": fedyogi(SETUP, Adaptive(**options, beta2=0.9)),
    }[name]
    state = algorithm.init(scalar(1.0))
    for change, momentum, v in zip((2.0, 0.0), (0.4, 0.32), after, strict=True):
        state = aggregate(algorithm, state, [(scalar(change), 5)])
        assert state.memory[FIRST]["w"].item() == pytest.approx(momentum, abs=1e-15)
        assert state.memory[SECOND]["w"].item() == pytest.approx(v, abs=1e-15)


def test_momentum_by_hand():
    """momentum 0.5, lr 2: m = 1, 0.5 x 1 + 3 = 3.5, 1.75 - 1 = 0.75; w = 2, 9, 10.5."""
    algorithm = fedavgm(SETUP, FedAvgM(lr=2.0, momentum=0.5))
    state = algorithm.init(scalar(0.0))
    for change, w in ((1.0, 2.0), (3.0, 9.0), (-1.0, 10.5)):
        state = aggregate(algorithm, state, [(scalar(change), 5)])
        assert state.adapter["w"].item() == w


def test_dampened_momentum_by_hand():
    """momentum 0.5, dampening 0.75: m = 1, all of it; 0.5 + 0.25 x 2 = 1; 0.5 - 0.25 x 4 = -0.5."""
    algorithm = fedavgm(SETUP, FedAvgM(momentum=0.5, dampening=0.75))
    state = algorithm.init(scalar(0.0))
    for change, w in ((1.0, 1.0), (2.0, 2.0), (-4.0, 1.5)):
        state = aggregate(algorithm, state, [(scalar(change), 5)])
        assert state.adapter["w"].item() == w


@pytest.mark.parametrize("options", [{}, {"dampening": 0.9}, {"momentum": 0.6, "dampening": 0.3}])
def test_momentum_is_torchs(options):
    """Which takes all of the first gradient; 0.9 and 0.9 are OpenFedLLM's m <- 0.9 m + 0.1 D."""
    algorithm = fedavgm(SETUP, FedAvgM(lr=0.7, **options))
    state = algorithm.init(first())
    parameters = {key: torch.nn.Parameter(t.clone()) for key, t in first().items()}
    theirs = torch.optim.SGD(parameters.values(), **{"lr": 0.7, "momentum": 0.9, **options})
    for t in range(1, 5):
        state = aggregate(algorithm, state, changes_of(t))
        mean = weighted_mean(changes_of(t))
        for key, parameter in parameters.items():
            parameter.grad = -mean[key]
        theirs.step()
        assert furthest(state.adapter, {k: p.detach() for k, p in parameters.items()}) < 1e-12


def test_a_factors_first_turn_is_undampened():
    """RoLoRA's B is averaged from round 1 on, and its A from round 2."""
    plain, damped = (
        play(build("rolora+fedavgm", options={"fedavgm": {"dampening": share}}), rounds=2)
        for share in (0.0, 0.9)
    )
    assert furthest(plain.server.adapter, damped.server.adapter) == 0
    later = play(build("rolora+fedavgm", options={"fedavgm": {"dampening": 0.9}}), rounds=3)
    undamped = play(build("rolora+fedavgm"), rounds=3)
    assert furthest(later.server.adapter, undamped.server.adapter) > 1e-3


SERVERS = {
    "fedavg": fedavg(SETUP),
    "fedavgm": fedavgm(SETUP, FedAvgM(lr=0.7)),
    **{name: case.build(LR) for name, case in CASES.items()},
}


@pytest.mark.parametrize("name", SERVERS)
def test_servers_weigh_changes_by_records(name):
    """As if each record had sent its client's change."""
    algorithm = SERVERS[name]
    start = algorithm.init(first())
    weighted = aggregate(algorithm, start, changes_of(1))
    each = [(change, 1) for change, n in changes_of(1) for _ in range(n)]
    assert furthest(weighted.adapter, aggregate(algorithm, start, each).adapter) < 1e-12
    unweighted = aggregate(algorithm, start, [(change, 1) for change, _ in changes_of(1)])
    assert furthest(weighted.adapter, unweighted.adapter) > 1e-3


@pytest.mark.parametrize("targets", ["", "fedsd+", "fedsdr+"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("fedavgm", {"lr": 1.0, "momentum": 0.0}), ("fedprox", {"mu": 0.0})],
)
def test_with_these_options_it_is_fedavg_to_the_bit(name, options, targets):
    plain = play(build(targets + "fedavg"))
    limit = play(build(targets + name, options={name: options}))
    assert same_bits(limit.server.adapter, plain.server.adapter)
    assert same_bits(limit.updates, plain.updates)
    assert same_bits(limit.clients, plain.clients)
    other = play(build(targets + name))
    assert furthest(other.server.adapter, plain.server.adapter) > 1e-3


@pytest.mark.parametrize("tau", [1e5, 1e6])
@pytest.mark.parametrize(
    ("name", "divisor"),
    [
        # sqrt(v) + tau, in units of tau, where the changes are nothing beside v_0 = tau^2
        ("fedadagrad", 2.0),
        ("fedyogi", 2.0),
        ("fedadam", 1 + math.sqrt(BETA2)),
    ],
)
def test_with_a_huge_tau_adaptive_optimisers_take_a_part_of_the_mean(name, divisor, tau):
    """FedAvg with the rate lr / tau, over what sqrt(v) adds to tau."""
    options = {"lr": LR * tau, "tau": tau}
    algorithm = {
        "fedadagrad": fedadagrad(SETUP, FedAdagrad(**options)),
        "fedadam": fedadam(SETUP, Adaptive(**options, beta1=0.0, beta2=BETA2)),
        "fedyogi": fedyogi(SETUP, Adaptive(**options, beta1=0.0, beta2=BETA2)),
    }[name]
    state = aggregate(algorithm, algorithm.init(first()), changes_of(1))
    wanted = add(first(), scale(weighted_mean(changes_of(1)), LR / divisor))
    assert furthest(state.adapter, wanted) < 10 / tau**2 + 1e-12
