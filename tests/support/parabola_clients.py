"""Clients of one number, whose loss is a parabola: optima and trajectories can be written down."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fitted,
    Round,
    Schedule,
    ServerState,
    Setup,
    Stage,
)
from fedsdr.core.adapters import (
    Adapter,
    Private,
    unwrap_private,
)
from fedsdr.core.metrics import Mean


def scalar(value: float) -> Adapter:
    return {"w": torch.tensor([value], dtype=torch.float64)}


class Parabola(NamedTuple):
    """A client: curvature / 2 (w - goal)^2. It steps along the gradient, or solves exactly.

    w is what is shared, or the client's own.
    """

    curvature: float
    goal: float
    records: int = 1
    exact: bool = False

    def gradient(self, w: float) -> float:
        return self.curvature * (w - self.goal)

    def __call__(self, stage: Stage) -> Fitted:
        sent = stage.shared or {}
        w = x = {**sent, **unwrap_private(stage.own)}["w"].item()
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
        gradient = scalar(total / steps) if stage.mean_gradient else {}
        after = scalar(w)
        shared, own = (after, None) if sent else ({}, Private(after))
        return Fitted(
            self.records, Mean(0.0, 1), Private(scalar(x)), Private(after), shared, own, gradient
        )


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
        return [state.recall(name, scalar(0.0))["w"].item() for state in self.clients]


def rounds_of(
    algorithm: Algorithm, clients: Sequence[Parabola], cohorts: Cohorts, start: float = 0.0
) -> Rounds:
    server = algorithm.init(scalar(start))
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
