"""The round loop: what it logs, whom it samples, when it evaluates, and which errors it raises."""

from fractions import Fraction
from math import ceil
from typing import Any

import pytest
import torch

from fedsdr.algorithms.contract import (
    ClientState,
    Round,
    Schedule,
    ServerState,
    Setup,
    Update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.local import local
from fedsdr.algorithms.participation import RoundOptions, present_clients, sample_clients
from fedsdr.core.adapters import Adapter, norm
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean, Metrics
from fedsdr.federation.checkpoint import load_checkpoint
from support.toy_clients import RECORDS, ToyClient, random_adapter
from support.toy_engine import ROUNDS, Killed, go, log, same, size, timeless

# The log


def test_a_line_a_round_says_who_trained_and_what_was_sent(tmp_path):
    state, engine = go(tmp_path)
    rows = log(tmp_path)
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4]
    assert [{*row} for row in rows] == [
        {"round", "eval"},
        {"round", "clients", "train"},
        {"round", "clients", "train", "eval"},
        {"round", "clients", "train"},
        {"round", "clients", "train", "eval"},
    ]
    numbers = 6 + 8 + 8 + 6  # of the two layers' factors
    for row, (round, cohort) in zip(rows[1:], engine.seen, strict=True):
        assert (row["round"], tuple(row["clients"])) == (round, cohort)
        assert row["train"]["bytes_up"] == row["train"]["bytes_down"] == 2 * 4 * numbers
        assert {"loss/rectify", "loss/smooth", "conflict/cosine"} < row["train"].keys()
    assert rows[0]["eval"] == {"size": norm(random_adapter("first", dtype=torch.float32))}
    assert rows[-1]["eval"] == {"size": norm(state.adapter)}


def test_training_metrics_are_means_over_clients_by_weight(tmp_path):
    def client(shared: Adapter, state: ClientState, fit: ToyClient, round: Round) -> Any:
        weight = RECORDS[fit.name]
        update, state = fedavg(Setup(Schedule(1, 0.1))).client(shared, state, fit, round)
        return Update(update.change, weight, {"loss/x": Mean(10.0, weight)}), state

    algorithm = fedavg(Setup(Schedule(1, 0.1)))._replace(client=client)
    go(tmp_path, RoundOptions(0, 1, 1.0, 0), algorithm=algorithm)
    assert log(tmp_path)[1]["train"]["loss/x"] == pytest.approx(30 / (1 + 3 + 6))


def test_an_algorithm_that_sends_nothing_logs_no_bytes(tmp_path):
    state, _ = go(tmp_path, algorithm=local(Setup(Schedule(3, 0.1))))
    assert same(state.adapter, random_adapter("first", dtype=torch.float32))
    assert all(
        row["train"]["bytes_up"] == row["train"]["bytes_down"] == 0 for row in log(tmp_path)[1:]
    )
    assert log(tmp_path)[-1]["eval"] == {}


@pytest.mark.parametrize(
    ("total", "every", "evaluated"),
    [
        (0, 5, [0]),
        (1, 5, [0, 1]),
        (5, 0, [0, 5]),
        (5, 1, [0, 1, 2, 3, 4, 5]),
        (5, 2, [0, 2, 4, 5]),
        (6, 3, [0, 3, 6]),
        (5, 9, [0, 5]),
    ],
)
def test_evaluation_is_before_every_n_rounds_and_after_the_last(tmp_path, total, every, evaluated):
    asked: list[Adapter] = []

    def evaluate(adapter: Adapter) -> Metrics:
        asked.append(adapter)
        return size(adapter)

    options = RoundOptions(0, total, 1.0, every)
    state, _ = go(tmp_path, options, evaluate=evaluate)
    assert [row["round"] for row in log(tmp_path) if "eval" in row] == evaluated
    assert len(asked) == len(evaluated)
    assert same(asked[-1], state.adapter)


# Who takes part


def test_cohorts_depend_on_seed_and_round_alone():
    clients = [f"c{i}" for i in range(20)]
    drawn = {
        (seed, round): tuple(sample_clients(clients, 0.3, seed, round))
        for seed in range(3)
        for round in range(1, 9)
    }
    for (seed, round), cohort in reversed(drawn.items()):
        torch.manual_seed(round)  # the global generator has no say
        assert tuple(sample_clients(clients, 0.3, seed, round)) == cohort
        assert len({*cohort}) == 6
        assert [*cohort] == sorted(cohort, key=clients.index)
    assert len({*drawn.values()}) == len(drawn)
    assert {name for cohort in drawn.values() for name in cohort} == {*clients}


def test_cohorts_are_fair():
    """Each of five clients is in two fifths of the rounds, give or take five standard errors."""
    clients = list("abcde")
    counts = dict.fromkeys(clients, 0)
    for round in range(2000):
        for name in sample_clients(clients, 0.4, 7, round):
            counts[name] += 1
    assert all(abs(count - 800) < 5 * (2000 * 0.4 * 0.6) ** 0.5 for count in counts.values())


@pytest.mark.parametrize("clients", [1, 3, 5, 25, 50, 100])
def test_cohort_sizes_are_the_ceiling_of_the_share(clients):
    """In exact arithmetic: 0.07 of 100 clients are 7, though 0.07 * 100 > 7 in floating point."""
    names = [f"c{i}" for i in range(clients)]
    for percent in range(1, 101):
        expected = max(1, ceil(Fraction(percent, 100) * clients))
        assert len(sample_clients(names, percent / 100, 0, 1)) == expected
    assert len(sample_clients(names, 1e-12, 0, 1)) == 1


@pytest.mark.parametrize(
    ("clients", "late", "first"),
    [(5, 0.4, 3), (5, 0.01, 4), (5, 0.99, 1), (3, 0.5, 2), (2, 0.9, 1), (100, 0.29, 71), (3, 0, 3)],
)
def test_the_last_clients_come_late(clients, late, first):
    names = [f"c{i}" for i in range(clients)]
    for round in (1, 2, 3):
        assert present_clients(names, late, 3, round) == names[:first]
    for late_round, round in ((3, 4), (0, 1)):
        assert present_clients(names, late, late_round, round) == names


def test_late_clients_take_part_from_their_round_on(tmp_path):
    options = RoundOptions(1, ROUNDS, 0.6, 0, late=0.4, late_round=2)  # one of three
    _, engine = go(tmp_path, options)
    cohorts = [cohort for _, cohort in engine.seen]
    assert cohorts[:2] == [("anna", "ben")] * 2
    on_time = RoundOptions(1, ROUNDS, 0.6, 0)
    _, other = go(tmp_path / "on time", on_time)
    assert [cohort for _, cohort in other.seen][2:] == cohorts[2:]  # drawn as if nobody were late
    assert any("cleo" in cohort for cohort in cohorts[2:])
    assert not list((tmp_path / "clients" / "cleo").glob("*00000[12]*"))


def test_a_killed_run_with_late_clients_ends_as_if_it_were_not(tmp_path):
    options = RoundOptions(1, ROUNDS, 1.0, 2, late=0.4, late_round=2)
    straight, _ = go(tmp_path / "a", options)
    for point in ("round 2 trained", "round 3 before cleo", "round 3 after saving cleo"):

        def kill(here: str, point: str = point) -> None:
            if here == point:
                raise Killed

        folder = tmp_path / point
        with pytest.raises(Killed):
            go(folder, options, kill)
        resumed, _ = go(folder, options)
        assert same(resumed.adapter, straight.adapter)
        assert timeless(folder) == timeless(tmp_path / "a")


def test_weights_are_those_of_the_participants(tmp_path):
    """Two of three clients a round: the global adapter moves by their own mean."""
    state, engine = go(
        tmp_path, RoundOptions(1, 1, 0.6, 0), algorithm=fedavg(Setup(Schedule(1, 1.0)))
    )
    ((_, cohort),) = engine.seen
    assert len(cohort) == 2
    total = sum(RECORDS[name] for name in cohort)
    goals = {name: random_adapter("goal", name, "raw", dtype=torch.float32) for name in cohort}
    for key, tensor in state.adapter.items():  # one step of rate 1 reaches the client's goal
        expected = sum(goals[name][key] * (RECORDS[name] / total) for name in cohort)
        assert torch.allclose(tensor, expected, atol=1e-6)


# Errors


def test_a_bad_update_names_its_client_and_nothing_is_committed(tmp_path):
    def client(shared: Adapter, state: ClientState, fit: ToyClient, round: Round) -> Any:
        update, state = fedavg(Setup(Schedule(1, 0.1))).client(shared, state, fit, round)
        if fit.name == "ben":
            update.change["layers.0.x.lora_A.weight"][0, 0] = torch.nan
        return update, state

    algorithm = fedavg(Setup(Schedule(1, 0.1)))._replace(client=client)
    with pytest.raises(ValueError, match="update of client 'ben' has NaN"):
        go(tmp_path, RoundOptions(0, 1, 1.0, 0), algorithm=algorithm)
    committed = load_checkpoint(tmp_path)
    assert committed is not None
    assert committed[0] == 0
    assert len(log(tmp_path)) == 1


def test_a_global_adapter_that_overflows_is_the_users_learning_rate(tmp_path):
    plain = fedavg(Setup(Schedule(1, 0.1)))

    def finish(state: ServerState, fold: Any, round: Round) -> ServerState:
        return ServerState(
            {key: t * torch.inf for key, t in plain.finish(state, fold, round).adapter.items()}
        )

    with pytest.raises(UserError, match="NaN or infinite in round 1: lower the learning rate"):
        go(tmp_path, algorithm=plain._replace(finish=finish))


@pytest.mark.parametrize(
    ("bad", "remedy"), [(0, "the base model itself is broken"), (2, "lower the learning rate")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_evaluation_that_is_not_finite_is_the_users_error(tmp_path, bad, remedy, value):
    calls: list[int] = []

    def evaluate(adapter: Adapter) -> Metrics:
        calls.append(len(calls) * 2)  # rounds 0, 2, 4
        return {"loss": Mean(value if calls[-1] == bad else 1.0, 1)}

    with pytest.raises(UserError, match=f"round {bad} gave loss = {value}: {remedy}"):
        go(tmp_path, evaluate=evaluate)
