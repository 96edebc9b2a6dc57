"""The algorithms that optimise: against Flower, the papers' algorithms written out, and by hand."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.common import ndarrays_to_parameters
from flwr.server import strategy as flwr
from torch.func import functional_call

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fitted,
    Pull,
    Round,
    Schedule,
    ServerState,
    Setup,
    Stage,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.feddyn import GRADIENT, FedDyn, feddyn
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
from fedsdr.algorithms.fedprox import FedProx, fedprox
from fedsdr.algorithms.scaffold import CONTROL, Scaffold, scaffold
from fedsdr.core import seeds
from fedsdr.core.adapters import (
    A_SUFFIX,
    B_SUFFIX,
    Adapter,
    Private,
    add,
    factor_of,
    norm,
    scale,
    select_tensors,
    subtract,
    unwrap_private,
    weighted_mean,
    zeros_like,
)
from fedsdr.core.metrics import Mean
from fedsdr.data.batches import collate_examples, shuffled_batches
from fedsdr.data.template import Example
from fedsdr.model.lora import Stream
from fedsdr.training.local import LocalTrainer
from support import flower_strategies
from support.tiny_models import SPECIALS, make, random_ids, start_adapter, two_streams
from support.tiny_models import random_adapter as random_like
from support.toy_clients import CLIENTS, RECORDS, random_adapter
from support.toy_rounds import SETUP, aggregate, build, furthest, play, same_bits

# --- Server optimisers: changes and weights go in, the next global adapter comes out

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


def number(value: float) -> Adapter:
    return {"w": torch.tensor([value], dtype=torch.float64)}


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
    state = algorithm.init(number(1.0))
    for change, momentum, v in zip((2.0, 0.0), (0.4, 0.32), after, strict=True):
        state = aggregate(algorithm, state, [(number(change), 5)])
        assert state.memory[FIRST]["w"].item() == pytest.approx(momentum, abs=1e-15)
        assert state.memory[SECOND]["w"].item() == pytest.approx(v, abs=1e-15)


def test_momentum_by_hand():
    """momentum 0.5, lr 2: m = 1, 0.5 x 1 + 3 = 3.5, 1.75 - 1 = 0.75; w = 2, 9, 10.5."""
    algorithm = fedavgm(SETUP, FedAvgM(lr=2.0, momentum=0.5))
    state = algorithm.init(number(0.0))
    for change, w in ((1.0, 2.0), (3.0, 9.0), (-1.0, 10.5)):
        state = aggregate(algorithm, state, [(number(change), 5)])
        assert state.adapter["w"].item() == w


def test_dampened_momentum_by_hand():
    """momentum 0.5, dampening 0.75: m = 1, all of it; 0.5 + 0.25 x 2 = 1; 0.5 - 0.25 x 4 = -0.5."""
    algorithm = fedavgm(SETUP, FedAvgM(momentum=0.5, dampening=0.75))
    state = algorithm.init(number(0.0))
    for change, w in ((1.0, 1.0), (2.0, 2.0), (-4.0, 1.5)):
        state = aggregate(algorithm, state, [(number(change), 5)])
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


# --- Clients of one number, whose loss is a parabola


class Parabola(NamedTuple):
    """A client: curvature / 2 (w - goal)^2. It steps along the gradient, or solves exactly."""

    curvature: float
    goal: float
    records: int = 1
    exact: bool = False

    def gradient(self, w: float) -> float:
        return self.curvature * (w - self.goal)

    def __call__(self, stage: Stage) -> Fitted:
        assert stage.shared is not None
        w = x = stage.shared["w"].item()
        strength = stage.pull.strength if stage.pull else 0.0
        towards = stage.pull.towards["w"].item() if stage.pull else 0.0
        shift = stage.shift["w"].item() if stage.shift else 0.0
        steps = stage.schedule.steps
        total = 0.0
        for _ in range(steps):
            total += self.gradient(w)
            w -= stage.schedule.lr * (self.gradient(w) + strength * (w - towards) + shift)
        if self.exact:  # where the gradient of all that is zero
            pulled = self.curvature * self.goal + strength * towards - shift
            w = pulled / (self.curvature + strength)
        gradient = number(total / steps) if stage.mean_gradient else {}
        before, after = Private(number(x)), Private(number(w))
        return Fitted(self.records, Mean(0.0, 1), before, after, number(w), gradient=gradient)


Cohorts = Sequence[Sequence[int]]  # who takes part in each round


class Rounds(NamedTuple):
    """The server's numbers after each round, and the clients' last states."""

    servers: list[ServerState]
    clients: list[ClientState]

    def w(self) -> list[float]:
        return [server.adapter["w"].item() for server in self.servers]

    def of_server(self, name: str) -> list[float]:
        return [server.memory[name]["w"].item() for server in self.servers]

    def of_clients(self, name: str) -> list[float]:
        return [state.recall(name, number(0.0))["w"].item() for state in self.clients]


def rounds_of(
    algorithm: Algorithm, clients: Sequence[Parabola], cohorts: Cohorts, start: float = 0.0
) -> Rounds:
    server = algorithm.init(number(start))
    states = [ClientState() for _ in clients]
    servers = []
    for t, cohort in enumerate(cohorts, start=1):
        round = Round(t, t, sum(client.records for client in clients))
        shared, fold = algorithm.broadcast(server), algorithm.start(server, round)
        for k in cohort:
            update, states[k] = algorithm.client(shared, states[k], clients[k], round)
            fold = algorithm.add(fold, update)
        server = algorithm.finish(server, fold, round)
        servers.append(server)
    return Rounds(servers, states)


def setup(steps: int, lr: float) -> Setup:
    return Setup(Schedule(steps, lr))


def some(rounds: int, of: int, seed: int = 3) -> Cohorts:
    """Random cohorts of random sizes; not all of them are everybody."""
    draw = random.Random(seed)
    cohorts = [sorted(draw.sample(range(of), draw.randint(1, of))) for _ in range(rounds)]
    assert any(len(cohort) < of for cohort in cohorts)
    return cohorts


# Different curvatures, goals and weights: the mean of local optima is not the optimum.
UNLIKE = (Parabola(1.0, 4.0, 1), Parabola(3.0, -2.0, 3))
OPTIMUM = -1.4  # 1/4 (w - 4) + 3/4 x 3 (w + 2) = 0
THREE = (Parabola(1.0, 4.0, 2), Parabola(3.0, -2.0, 1), Parabola(0.5, 1.0, 5))


def optimum(clients: Sequence[Parabola]) -> float:
    """Where the weighted sum of the gradients is zero."""
    pulls = [client.records * client.curvature for client in clients]
    goals = [client.goal for client in clients]
    return sum(p * goal for p, goal in zip(pulls, goals, strict=True)) / sum(pulls)


def test_the_optimum_of_the_example():
    assert optimum(UNLIKE) == pytest.approx(OPTIMUM)


# --- FedProx


def test_fedprox_by_hand():
    """Goal 5, mu 1, steps of 1/4, from w^t = 1: the gradient is (w - 5) + (w - w^t).

    Round 1: w = 1: -4, 2: -2, 2.5: -1, 2.75. Round 2, from w^t = 2.75: -2.25, 3.3125: -1.125,
    3.59375: -0.5625, 3.734375. Without the pull round 1 is 1: -4, 2: -3, 2.75: -2.25, 3.3125.
    """
    client = [Parabola(1.0, 5.0)]
    of = setup(3, 0.25)
    pulled = rounds_of(fedprox(of, FedProx(mu=1.0)), client, [[0], [0]], start=1.0)
    assert pulled.w() == [2.75, 3.734375]
    assert rounds_of(fedprox(of, FedProx(mu=0.0)), client, [[0]], start=1.0).w() == [3.3125]


@pytest.mark.parametrize("mu", [0.0, 0.5, 4.0])
def test_fedprox_solved_exactly_is_a_proximal_step(mu):
    """argmin a/2 (w - goal)^2 + mu/2 (w - w^t)^2 = (a goal + mu w^t) / (a + mu)."""
    clients = [client._replace(exact=True) for client in UNLIKE]
    algorithm = fedprox(setup(1, 0.1), FedProx(mu=mu))
    got = rounds_of(algorithm, clients, [[0, 1]] * 4, start=7.0).w()
    w = 7.0
    for each in got:
        w = (4 + mu * w) / (1 + mu) / 4 + (-6 + mu * w) / (3 + mu) * 3 / 4
        assert each == pytest.approx(w, abs=1e-12)


def test_fedprox_pulls_towards_what_was_received():
    played = play(build("fedprox", options={"fedprox": {"mu": 0.3}}))
    for stage in played.stages:
        assert stage.pull is not None
        assert stage.pull.strength == 0.3
        assert same_bits(stage.pull.towards, stage.shared)


# --- SCAFFOLD


def test_scaffold_by_hand():
    """Two steps of 1/4 in each round; weights 1/4 and 3/4.

    Round 1, all controls zero, x = 0:
        y_1 = 0, 1, 1.75 along -4, -3: c_1 = -3.5
        y_2 = 0, -1.5, -1.875 along 6, 1.5: c_2 = 3.75
        x = (1.75 - 3 x 1.875) / 4 = -0.96875, c = (-3.5 + 3 x 3.75) / 4 = 1.9375
    Round 2:
        g_1 = -4.96875 and -5.0859375, shifted by 1.9375 + 3.5: c_1 = -5.02734375
        g_2 = 3.09375 and 2.1328125, shifted by 1.9375 - 3.75: c_2 = 2.61328125
        y_1 = x - 0.205078125, y_2 = x - 0.400390625
        x = -1.3203125, c = 0.703125
    """
    algorithm = scaffold(setup(2, 0.25), Scaffold())
    rounds = rounds_of(algorithm, UNLIKE, [[0, 1]] * 2)
    assert rounds.w() == [-0.96875, -1.3203125]
    assert rounds.of_server(CONTROL) == [1.9375, 0.703125]
    assert rounds.of_clients(CONTROL) == [-5.02734375, 2.61328125]


def paper_scaffold(
    clients: Sequence[Parabola], cohorts: Cohorts, steps: int, lr: float, server_lr: float
) -> tuple[list[float], list[float], list[float]]:
    """Karimireddy et al. 2020, Algorithm 1, option II: x and c by round, and the last c_i.

    Its means over |S| and its |S| / N are weighted here by records, and so equal with equal ones.
    """
    n = sum(client.records for client in clients)
    x = c = 0.0
    controls = [0.0 for _ in clients]
    xs, cs = [], []
    for cohort in cohorts:
        in_cohort = sum(clients[i].records for i in cohort)
        dx = dc = 0.0
        for i in cohort:
            y = x
            for _ in range(steps):
                y = y - lr * (clients[i].gradient(y) - controls[i] + c)
            plus = controls[i] - c + (x - y) / (steps * lr)
            dx += clients[i].records / in_cohort * (y - x)
            dc += clients[i].records / in_cohort * (plus - controls[i])
            controls[i] = plus
        x, c = x + server_lr * dx, c + in_cohort / n * dc
        xs.append(x)
        cs.append(c)
    return xs, cs, controls


@pytest.mark.parametrize("server_lr", [1.0, 0.6])
@pytest.mark.parametrize("records", [(1, 1, 1), (2, 1, 5)])
@pytest.mark.parametrize("cohorts", [[[0, 1, 2]] * 6, some(9, 3)], ids=["all", "some"])
def test_under_gradient_descent_scaffold_is_the_papers_option_two(records, cohorts, server_lr):
    clients = [client._replace(records=n) for client, n in zip(THREE, records, strict=True)]
    algorithm = scaffold(setup(3, 0.1), Scaffold(lr=server_lr))
    rounds = rounds_of(algorithm, clients, cohorts)
    xs, cs, controls = paper_scaffold(clients, cohorts, 3, 0.1, server_lr)
    assert rounds.w() == pytest.approx(xs, abs=1e-12)
    assert rounds.of_server(CONTROL) == pytest.approx(cs, abs=1e-12)
    assert rounds.of_clients(CONTROL) == pytest.approx(controls, abs=1e-12)


def weighted_memory(played: Any, name: str) -> Adapter:
    """sum_k (n_k / n) of a memory over all clients; those never seen have zeros."""
    like = random_adapter("first")
    return weighted_mean(
        (played.clients[client].recall(name, like), RECORDS[client]) for client in CLIENTS
    )


@pytest.mark.parametrize("targets", ["", "fedsd+", "fedsdr+"])
@pytest.mark.parametrize(("name", "memory"), [("scaffold", CONTROL), ("feddyn", GRADIENT)])
def test_the_server_remembers_the_weighted_sum_of_what_clients_do(name, memory, targets):
    cohorts = some(6, len(CLIENTS), seed=2)
    assert len(cohorts[0]) < len(CLIENTS)  # somebody has not been seen yet
    for rounds in range(1, len(cohorts) + 1):
        played = play(
            build(targets + name),
            rounds=rounds,
            cohorts=lambda number: [CLIENTS[k] for k in cohorts[number - 1]],
        )
        wanted = weighted_memory(played, memory)
        assert furthest(played.server.memory[memory], wanted) < 1e-12
        assert norm(wanted) > 1e-3


@pytest.mark.parametrize("targets", ["", "fedsd+", "fedsdr+"])
def test_the_first_round_of_scaffold_is_fedavg_to_the_bit(targets):
    plain, corrected = (play(build(targets + name), rounds=1) for name in ("fedavg", "scaffold"))
    assert same_bits(corrected.server.adapter, plain.server.adapter)
    # And the second is not, where some are missing: toy clients are of one curvature, so that
    # the corrections of all of them cancel in the mean.
    plain, corrected = (
        play(build(targets + name), rounds=2, cohorts=lambda number: CLIENTS[number - 1 :])
        for name in ("fedavg", "scaffold")
    )
    assert furthest(corrected.server.adapter, plain.server.adapter) > 1e-3


@pytest.mark.parametrize("targets", ["", "fedsd+", "fedsdr+"])
def test_scaffold_sends_both_changes_and_keeps_its_control(targets):
    played = play(build(targets + "scaffold"), rounds=2)
    for update in played.updates:
        assert update.change.keys() == {p + key for key in first() for p in ("", CONTROL)}
    # Of the last round: what a client keeps is the mean gradient of its training.
    rectified = [
        fitted
        for stage, fitted in zip(played.stages, played.fits, strict=True)
        if stage.trains == "R"
    ]
    for client, fitted in zip(CLIENTS, rectified[-len(CLIENTS) :], strict=True):
        assert same_bits(played.clients[client].memory[CONTROL], fitted.gradient)


def test_scaffold_finds_the_optimum_where_fedavg_does_not():
    """With 20 local steps clients come near their own optima, and FedAvg near the mean of those.

    Its fixed point is sum p_k r_k goal_k / sum p_k r_k, r_k = 1 - (1 - lr a_k)^20: -0.64, and
    -0.5 with more steps. SCAFFOLD's is the optimum, -1.4, where sum p_k F_k' = 0.
    """
    of = setup(20, 0.1)
    plain = rounds_of(fedavg(of), UNLIKE, [[0, 1]] * 60).w()[-1]
    reach = [1 - (1 - 0.1 * client.curvature) ** 20 for client in UNLIKE]
    fixed = (reach[0] * 4.0 - 3 * reach[1] * 2.0) / (reach[0] + 3 * reach[1])
    assert plain == pytest.approx(fixed, abs=1e-9)
    assert fixed == pytest.approx(-0.6402, abs=1e-4)
    corrected = rounds_of(scaffold(of, Scaffold()), UNLIKE, [[0, 1]] * 200)
    assert corrected.w()[-1] == pytest.approx(OPTIMUM, abs=1e-9)
    # There each control is its client's gradient, and their weighted sum nothing.
    gradients = [client.gradient(OPTIMUM) for client in UNLIKE]
    assert corrected.of_clients(CONTROL) == pytest.approx(gradients, abs=1e-8)
    assert corrected.of_server(CONTROL)[-1] == pytest.approx(0.0, abs=1e-8)


# --- FedDyn


def paper_feddyn(
    clients: Sequence[Parabola], cohorts: Cohorts, alpha: float
) -> tuple[list[float], list[float], list[float]]:
    """Acar et al. 2021, Algorithm 1: theta and h by round, and the clients' last gradients.

    argmin L_k(w) - <grad_k, w> + alpha/2 (w - theta)^2 is where
    a_k (w - goal_k) - grad_k + alpha (w - theta) = 0. Means are weighted by records.
    """
    n = sum(client.records for client in clients)
    theta = h = 0.0
    gradients = [0.0 for _ in clients]
    thetas, hs = [], []
    for cohort in cohorts:
        solved = {}
        for k in cohort:
            a, goal = clients[k].curvature, clients[k].goal
            solved[k] = (a * goal + gradients[k] + alpha * theta) / (a + alpha)
            gradients[k] = gradients[k] - alpha * (solved[k] - theta)
        h = h - alpha * sum(clients[k].records / n * (solved[k] - theta) for k in cohort)
        in_cohort = sum(clients[k].records for k in cohort)
        theta = sum(clients[k].records * solved[k] for k in cohort) / in_cohort - h / alpha
        thetas.append(theta)
        hs.append(h)
    return thetas, hs, gradients


@pytest.mark.parametrize("alpha", [0.3, 2.0])
@pytest.mark.parametrize("records", [(1, 1, 1), (2, 1, 5)])
@pytest.mark.parametrize("cohorts", [[[0, 1, 2]] * 6, some(9, 3)], ids=["all", "some"])
def test_feddyn_is_the_papers(records, cohorts, alpha):
    clients = [
        client._replace(records=n, exact=True) for client, n in zip(THREE, records, strict=True)
    ]
    algorithm = feddyn(setup(1, 0.1), FedDyn(alpha=alpha))
    rounds = rounds_of(algorithm, clients, cohorts)
    thetas, hs, gradients = paper_feddyn(clients, cohorts, alpha)
    assert rounds.w() == pytest.approx(thetas, abs=1e-11)
    assert rounds.of_server(GRADIENT) == pytest.approx(hs, abs=1e-11)
    assert rounds.of_clients(GRADIENT) == pytest.approx(gradients, abs=1e-11)


def test_feddyn_by_hand():
    """alpha 1, one round from 0, all h zero: w_1 = 4 / 2 = 2, w_2 = -6 / 4 = -1.5.

    h_1 = -2, h_2 = 1.5, h = (-2 + 3 x 1.5) / 4 = 0.625,
    w = (2 - 3 x 1.5) / 4 - 0.625 = -1.25.
    """
    clients = [client._replace(exact=True) for client in UNLIKE]
    algorithm = feddyn(setup(1, 0.1), FedDyn(alpha=1.0))
    rounds = rounds_of(algorithm, clients, [[0, 1]])
    assert rounds.of_clients(GRADIENT) == [-2.0, 1.5]
    assert rounds.of_server(GRADIENT) == [0.625]
    assert rounds.w() == [-1.25]


def test_what_a_feddyn_client_keeps_is_its_gradient_at_its_optimum():
    clients = [client._replace(exact=True) for client in THREE]
    algorithm = feddyn(setup(1, 0.1), FedDyn(alpha=0.7))
    state, shared = ClientState(), number(3.0)
    for _ in range(3):
        update, state = algorithm.client(shared, state, clients[1], Round(1, 1))
        solved = shared["w"].item() + update.change["w"].item()
        h = state.memory[GRADIENT]["w"].item()
        assert h == pytest.approx(clients[1].gradient(solved), abs=1e-12)
        shared = scale(shared, 0.5)


@pytest.mark.parametrize("cohorts", [[[0, 1, 2]] * 300, some(300, 3)], ids=["all", "some"])
def test_feddyn_finds_the_optimum_where_fedavg_does_not(cohorts):
    clients = [client._replace(exact=True) for client in THREE]
    of = setup(1, 0.1)
    rounds = rounds_of(feddyn(of, FedDyn(alpha=1.0)), clients, cohorts)
    assert rounds.w()[-1] == pytest.approx(optimum(clients), abs=1e-9)
    plain = rounds_of(fedavg(of), clients, [[0, 1, 2]]).w()[-1]
    assert plain == pytest.approx((2 * 4 + 1 * -2 + 5 * 1) / 8)  # of their own optima
    assert abs(plain - optimum(clients)) > 0.1


# --- The corrections in the real local trainer

R = Stream.RECTIFY
PAD = SPECIALS.index("<end>")
TARGETS = ("q_proj", "down_proj")
DECAY, SEED, STEPS = 0.1, 5, 3
TIGHT, LOOSE = 0.7, 1e6  # gradient norms that always and never bind
SHORT = Schedule(STEPS, 1e-2)


def example(seed: int) -> Example:
    ids = random_ids(1, 10, seed)[0].tolist()
    return Example(tuple(ids[: 1 + seed % 5]), tuple(ids[5 : 7 + seed % 4]))


DATA = {"raw": [example(seed) for seed in range(7)]}


def train(stage: Stage, clip: float = LOOSE) -> Fitted:
    model = two_streams("llama", TARGETS, dtype=torch.float64)
    trainer = LocalTrainer(
        model, DATA, client="a", round=2, seed=SEED, batch_size=3, clip=clip,
        weight_decay=DECAY, pad=PAD,
    )  # fmt: skip
    return trainer(stage)


BLANK = start_adapter(two_streams("llama", TARGETS, dtype=torch.float64))
W0, W1, W2 = (random_like(BLANK, seed) for seed in (11, 12, 13))
UPPER = select_tensors(W0, lambda key: "layers.1" in key)
LOWER = select_tensors(W0, lambda key: "layers.0" in key)
STAGES = {
    "nothing": Stage("rectify", "R", SHORT, W0),
    "pull": Stage("rectify", "R", SHORT, W0, pull=Pull(W1, 0.8)),
    "pull towards the start": Stage("rectify", "R", SHORT, W0, pull=Pull(W0, 5.0)),
    "pull of what is shared": Stage(
        "rectify", "R", SHORT, LOWER, own=Private(UPPER), pull=Pull(LOWER, 5.0)
    ),
    "pull of a client's own": Stage(
        "personal", "R", SHORT, own=Private(W0), pull=Pull(W1, 0.8)
    ),
    "shift": Stage("rectify", "R", SHORT, W0, shift=scale(W2, 0.5)),
    "both": Stage("rectify", "R", SHORT, W0, pull=Pull(W1, 0.8), shift=scale(W2, 0.5)),
    "both, A only": Stage(
        "rectify", "R", SHORT, W0, pull=Pull(W1, 0.8), shift=scale(W2, 0.5), factors="A"
    ),
    "both, B only": Stage(
        "rectify", "R", SHORT, W0, pull=Pull(W1, 0.8), shift=scale(W2, 0.5), factors="B"
    ),
    "both, partly shared": Stage(
        "rectify", "R", SHORT, LOWER, own=Private(UPPER),
        pull=Pull(LOWER, 5.0), shift=select_tensors(W2, lambda key: key in LOWER),
    ),
}  # fmt: skip
every_stage = pytest.mark.parametrize("name", STAGES)


def plain(stage: Stage, clip: float) -> tuple[Adapter, Adapter]:
    """R after AdamW on loss + mu/2 |w - w0|^2 + <shift, w>, and the loss's own mean gradient.

    None of the library's training code: the weights W0 + 2 B A go into a plain model.
    """
    base = make("llama", dtype=torch.float64)
    weights = {name: p.detach() for name, p in base.named_parameters()}
    start = {**(stage.shared or {}), **unwrap_private(stage.own)}
    learns = ("A", "B") if stage.factors == "both" else (stage.factors,)
    r = {
        key: tensor.clone().requires_grad_(factor_of(key) in learns)
        for key, tensor in start.items()
    }
    trained = {key: tensor for key, tensor in r.items() if tensor.requires_grad}
    optimiser = torch.optim.AdamW(
        trained.values(), lr=stage.schedule.lr, weight_decay=DECAY, foreach=False, fused=False
    )
    draw = seeds.seeded_generator(SEED, "batches", stage.name, 2, "a")
    sums = zeros_like(start)
    for indices in itertools.islice(
        shuffled_batches(len(DATA["raw"]), 3, draw), stage.schedule.steps
    ):
        changed = dict(weights)
        for path in (key.removesuffix(A_SUFFIX) for key in r if key.endswith(A_SUFFIX)):
            change = 2.0 * r[path + B_SUFFIX] @ r[path + A_SUFFIX]
            changed[path + ".weight"] = changed[path + ".weight"] + change
        batch = collate_examples([DATA["raw"][i] for i in indices], PAD)
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}

        logits = functional_call(base, changed, kwargs=inputs).logits[:, :-1].log_softmax(-1)
        labels = batch.labels[:, 1:]
        picked = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        loss = -(picked * (labels >= 0)).sum() / (labels >= 0).sum()
        for key, gradient in zip(
            trained, torch.autograd.grad(loss, [*trained.values()], retain_graph=True), strict=True
        ):
            sums[key] += gradient
        objective = loss
        if stage.pull:
            for key in stage.pull.towards:
                distance = (r[key] - stage.pull.towards[key]).square().sum()
                objective = objective + stage.pull.strength / 2 * distance
        for key, shift in (stage.shift or {}).items():
            objective = objective + (shift * r[key]).sum()
        optimiser.zero_grad()
        objective.backward()
        length = math.sqrt(sum(float(t.grad.square().sum()) for t in trained.values()))
        assert (length > clip) == (clip == TIGHT)
        for tensor in trained.values():
            tensor.grad *= min(1.0, clip / length)
        optimiser.step()
    return {key: t.detach() for key, t in r.items()}, scale(sums, 1 / stage.schedule.steps)


@every_stage
@pytest.mark.parametrize("clip", [TIGHT, LOOSE], ids=["clipped", "unclipped"])
def test_corrections_are_terms_of_the_objective(name, clip):
    stage = STAGES[name]
    fitted, (wanted, _) = train(stage, clip), plain(stage, clip)
    assert furthest(unwrap_private(fitted.after), wanted) < 1e-6
    assert furthest(unwrap_private(fitted.after), unwrap_private(fitted.before)) > 1e-3


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.shared])
def test_the_mean_gradient_is_the_uncorrected_losss(name):
    stage = replace(STAGES[name], mean_gradient=True)
    # Clipping would show: it binds in every step.
    fitted, (_, mean) = train(stage, TIGHT), plain(stage, TIGHT)
    assert fitted.gradient.keys() == stage.shared.keys()
    assert furthest(fitted.gradient, select_tensors(mean, lambda key: key in stage.shared)) < 1e-6
    assert norm(fitted.gradient) > 0.1
    # To ask for it changes nothing else.
    other = train(STAGES[name], TIGHT)
    assert other.gradient == {}
    assert same_bits(other.after, fitted.after)


@pytest.mark.parametrize(("factors", "frozen"), [("A", "B"), ("B", "A")])
def test_a_frozen_factor_does_not_move_at_all(factors, frozen):
    """Nor has it a gradient, nor does weight decay, the pull or the shift reach it."""
    stage = STAGES[f"both, {factors} only"]
    fitted = train(replace(stage, mean_gradient=True))
    for key, start in W0.items():
        still = factor_of(key) == frozen
        assert torch.equal(fitted.shared[key], start) == still
        assert bool(fitted.gradient[key].any()) != still


def test_a_strong_pull_holds_the_adapter_back():
    """In few steps of AdamW, not to the same place; the free one goes further."""
    free = train(replace(STAGES["nothing"], schedule=Schedule(30, 1e-2)))
    held = train(replace(STAGES["pull towards the start"], schedule=Schedule(30, 1e-2)))
    assert norm(subtract(held.shared, W0)) < 0.7 * norm(subtract(free.shared, W0))


@pytest.mark.parametrize("correction", [{"pull": Pull(W1, 0.0)}, {"shift": zeros_like(W0)}])
def test_a_correction_of_nothing_changes_no_bit(correction):
    free = train(STAGES["nothing"])
    assert same_bits(train(replace(STAGES["nothing"], **correction)).after, free.after)


SHARES = {
    "all of it": lambda key: True,
    "none of it": lambda key: False,
    "A": lambda key: factor_of(key) == "A",
    "the lower block": lambda key: "layers.0" in key,
}


@pytest.mark.parametrize("share", SHARES)
def test_own_tensors_complete_r(share):
    """Whoever has which tensor, the same R is trained; only what was sent can be sent back."""
    shared = select_tensors(W0, SHARES[share])
    own = select_tensors(W0, lambda key: key not in shared)
    fitted = train(Stage("rectify", "R", SHORT, shared, own=Private(own), mean_gradient=True))
    assert same_bits(fitted.before, W0)
    assert fitted.shared.keys() == fitted.gradient.keys() == shared.keys()
    assert unwrap_private(fitted.own).keys() == own.keys()
    together = {**fitted.shared, **unwrap_private(fitted.own)}
    assert same_bits(together, fitted.after)
    assert same_bits(together, train(STAGES["nothing"]).after)


@pytest.mark.parametrize("share", ["none of it", "A", "the lower block"])
def test_what_nobody_has_starts_fresh_and_is_the_clients_own(share):
    shared = select_tensors(W0, SHARES[share])
    fitted = train(Stage("rectify", "R", SHORT, shared))
    before = unwrap_private(fitted.before)
    assert same_bits(select_tensors(before, lambda key: key in shared), shared)
    fresh = select_tensors(before, lambda key: key not in shared)
    for key, tensor in fresh.items():
        assert bool(tensor.any()) == (factor_of(key) == "A")
    assert unwrap_private(fitted.own).keys() == fresh.keys()
    assert fitted.shared.keys() == shared.keys()
    # Own tensors that are only some of the missing ones are taken, the others fresh.
    some_key = min(fresh)
    partly = train(Stage("rectify", "R", SHORT, shared, own=Private({some_key: W1[some_key]})))
    wanted = {**before, some_key: W1[some_key]}
    assert same_bits(partly.before, wanted)
