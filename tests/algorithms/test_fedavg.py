"""FedAvg by hand."""

import pytest
import torch

from fedsdr.algorithms.contract import ServerState, Stage
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.core.adapters import Adapter
from support.toy_clients import CLIENTS, RECORDS, ToyClient, random_adapter
from support.toy_rounds import SCHEDULE, SETUP, aggregate, build, furthest, play, same_bits


def number(value: float) -> Adapter:
    return {"w": torch.tensor([value], dtype=torch.float64)}


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ([(5.0, 4)], 7.0),
        ([(1.0, 1), (4.0, 3)], 5.25),  # 2 + (1 x 1 + 3 x 4) / 4
        ([(1.0, 1), (4.0, 3), (-2.0, 6)], 2.1),  # 2 + (1 + 12 - 12) / 10
        ([(-2.0, 6), (1.0, 2)], 0.75),  # the other client stayed at home: 2 + (-12 + 2) / 8
        ([(3.0, 0.5), (5.0, 1.5)], 6.5),
    ],
)
def test_fedavg_weighs_participants_by_their_records(updates, expected):
    algorithm = fedavg(SETUP)
    state = algorithm.init(number(2.0))
    after = aggregate(algorithm, state, [(number(change), weight) for change, weight in updates])
    assert after.adapter["w"].item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("cohort", [("ben",), ("anna", "cleo"), ("ben", "cleo"), CLIENTS])
def test_fedavg_of_toy_clients_is_the_weighted_mean_of_their_adapters(cohort):
    first = random_adapter("first")
    stage = Stage("rectify", "R", SCHEDULE, first)
    trained = {name: ToyClient(name)(stage).shared for name in cohort}
    total = sum(RECORDS[name] for name in cohort)
    expected = {
        key: sum(trained[name][key] * (RECORDS[name] / total) for name in cohort) for key in first
    }
    assert furthest(play(build("fedavg"), cohort, 1).server.adapter, expected) < 1e-12


def test_fedavg_sums_in_float64():
    """A thousand small changes in float32 beside a large one: none of them is rounded away."""
    algorithm = fedavg(SETUP)
    state = algorithm.init({"w": torch.zeros(1)})
    changes = [2.0**24, *[1.0] * 1000, -(2.0**24)]
    after = aggregate(algorithm, state, [({"w": torch.tensor([it])}, 1) for it in changes])
    assert after.adapter["w"].item() == pytest.approx(1000 / 1002, rel=1e-6)


def test_memory_of_the_server_state_is_left_alone_by_fedavg():
    state = ServerState(number(0.0), {"moment": number(3.0)})
    after = aggregate(fedavg(SETUP), state, [(number(1.0), 1)])
    assert same_bits(after.memory["moment"], number(3.0))
