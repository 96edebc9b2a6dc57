"""The round loop: what it logs, samples and evaluates, and that a crash anywhere costs nothing."""

import json
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.algorithms.contract import (
    Algorithm,
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
from fedsdr.algorithms.two_stream import SMOOTHING, Smoothing, two_stream
from fedsdr.core.adapters import Adapter, Private, norm, unwrap_private
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean, Metrics
from fedsdr.core.progress import silent_reporter
from fedsdr.federation import rounds
from fedsdr.federation.checkpoint import load_checkpoint, save_checkpoint
from fedsdr.federation.rounds import Participant, run_rounds
from fedsdr.training.store import ClientStore
from support.toy_clients import RECORDS, ToyClient, random_adapter

NAMES = ["anna", "ben", "cleo"]
ROUNDS = 4
PARTIAL = RoundOptions(seed=1, rounds=ROUNDS, participation=0.6, every=2)


class Killed(BaseException):
    """The process ends here."""


class Engine:
    """Toy clients with real stores. `at` is called with the name of every point it passes."""

    def __init__(self, folder: Path, at: Callable[[str], None] = lambda point: None) -> None:
        self.store, self.at = ClientStore(folder / "clients"), at
        self.seen: list[tuple[int, tuple[str, ...]]] = []

    def clients(self) -> Sequence[str]:
        return NAMES

    def population(self) -> float:
        return sum(RECORDS.values())

    def run_round(
        self, algorithm: Algorithm, shared: Adapter, round: int, cohort: Sequence[str]
    ) -> Iterator[Participant]:
        self.seen.append((round, tuple(cohort)))
        for client in cohort:
            self.at(f"round {round} before {client}")
            state = self.store.load(client, round - 1)
            update, state = algorithm.client(
                shared, state, ToyClient(client, torch.float32), Round(round, 0)
            )
            self.store.save(client, round, state)
            self.at(f"round {round} after saving {client}")
            yield Participant(client, update)
        self.at(f"round {round} trained")

    def commit(self, round: int, cohort: Sequence[str]) -> None:
        self.at(f"round {round} before pruning")
        for client in cohort:
            self.store.prune(client, round)
        self.at(f"round {round} pruned")


def fedsdr() -> Algorithm:
    return two_stream(
        fedavg(Setup(Schedule(3, 0.1))), Smoothing(Schedule(2, 0.3), "keep", "joint", 0.25)
    )


def size(adapter: Adapter) -> Metrics:
    """What stands for an evaluation: a number of the adapter alone."""
    return {"size": Mean(norm(adapter), 1)} if adapter else {}


def go(
    folder: Path,
    options: RoundOptions = PARTIAL,
    at: Callable[[str], None] = lambda point: None,
    algorithm: Algorithm | None = None,
    evaluate: Callable[[Adapter], Metrics] = size,
) -> tuple[ServerState, Engine]:
    folder.mkdir(exist_ok=True)
    engine = Engine(folder, at)
    first = random_adapter("first", dtype=torch.float32)
    chosen = algorithm or fedsdr()
    state = run_rounds(chosen, engine, first, options, evaluate, folder, silent_reporter(), "toy")
    return state, engine


def log(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The log without the one thing in it that no two runs share."""
    rows = log(folder)
    for row in rows[1:]:
        assert row["train"].pop("seconds") >= 0
    return rows


def same(a: Adapter, b: Adapter) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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


# A crash at any point, then --resume


def points(folder: Path) -> list[str]:
    """Every point that an undisturbed run passes, in order."""
    passed: list[str] = []
    with watched(passed.append):
        go(folder, at=passed.append)
    return passed


class watched:  # noqa: N801 (read as a verb)
    """Calls `at` before and after each line of the log and each checkpoint is written."""

    def __init__(self, at: Callable[[str], None]) -> None:
        self.at, self.patch = at, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        def append(path: Path, row: Any) -> None:
            self.at(f"round {row['round']} before the log's line")
            APPEND(path, row)
            self.at(f"round {row['round']} between log and checkpoint")

        def save(folder: Path, round: int, state: ServerState) -> None:
            self.at(f"round {round} before the checkpoint")
            save_checkpoint(folder, round, state)
            self.at(f"round {round} after the checkpoint")

        self.patch.setattr(rounds.files, "append_json_line", append)
        self.patch.setattr(rounds, "save_checkpoint", save)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


APPEND = rounds.files.append_json_line


def killer(point: str) -> Callable[[str], None]:
    def at(passed: str) -> None:
        if passed == point:
            raise Killed(point)

    return at


def go_killed(folder: Path, point: str) -> None:
    at = killer(point)
    with watched(at), pytest.raises(Killed):
        go(folder, at=at)


def assert_as_undisturbed(folder: Path, whole: Path, state: ServerState) -> None:
    expected = load_checkpoint(whole)
    assert expected is not None
    assert expected[0] == ROUNDS
    assert same(state.adapter, expected[1].adapter)
    assert same(load_checkpoint(folder)[1].adapter, state.adapter)
    assert timeless(folder) == timeless(whole)
    for name in NAMES:
        a, b = (ClientStore(it / "clients").load(name, ROUNDS) for it in (folder, whole))
        assert a.private.keys() == b.private.keys()
        assert all(
            same(unwrap_private(a.private[k]), unwrap_private(b.private[k])) for k in a.private
        )
    files = [
        {str(p.relative_to(it)) for p in it.rglob("*") if p.is_file()} for it in (folder, whole)
    ]
    assert files[0] == files[1]  # older versions of private states are gone, too


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_killed_at_any_point_ends_as_if_it_were_not(tmp_path):
    whole = tmp_path / "whole"
    passed = points(whole)
    assert len(passed) == len({*passed}) == 2 + ROUNDS * (2 * 2 + 1 + 4 + 2)
    for number, point in enumerate(passed):
        folder = tmp_path / str(number)
        go_killed(folder, point)
        state, _ = go(folder)
        assert_as_undisturbed(folder, whole, state)


@pytest.mark.parametrize("seed", range(8))
def test_a_run_killed_again_and_again_ends_as_if_it_were_not(tmp_path, seed):
    """Each attempt dies after a number of points drawn from 1 to 16; a round has 11."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    points(whole)
    draw = random.Random(seed)
    attempts = 0
    while True:
        left = draw.randint(1, 16)

        def at(passed: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed(passed)

        attempts += 1
        try:
            with watched(at):
                state, _ = go(folder, at=at)
        except Killed:
            continue
        break
    assert attempts > ROUNDS
    assert_as_undisturbed(folder, whole, state)


def test_a_log_line_cut_short_is_written_again(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    points(whole)
    go_killed(folder, "round 2 before the log's line")
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"round": 2, "clients": ["an')
    state, _ = go(folder)
    assert_as_undisturbed(folder, whole, state)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_log_without_the_line_of_a_committed_round_is_refused(tmp_path, lost):
    """Nothing that is counted over rounds, epsilon above all, is right without it."""
    go_killed(tmp_path, "round 3 before anna")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:lost] + lines[lost + 1 :]))
    with pytest.raises(UserError, match="does not have a line for each round up to 2"):
        go(tmp_path)


def test_a_finished_run_trains_and_evaluates_nothing_more(tmp_path):
    first, _ = go(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def evaluate(adapter: Adapter) -> Metrics:
        raise AssertionError

    again, engine = go(tmp_path, evaluate=evaluate)
    assert engine.seen == []
    assert same(again.adapter, first.adapter)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_more_rounds_than_before_go_on_from_the_last(tmp_path):
    whole, _ = go(tmp_path / "whole")
    short = RoundOptions(PARTIAL.seed, 2, PARTIAL.participation, PARTIAL.every)
    go(tmp_path / "short", short)
    longer, engine = go(tmp_path / "short")
    assert [round for round, _ in engine.seen] == [3, 4]
    assert same(longer.adapter, whole.adapter)


def test_a_checkpoint_keeps_the_servers_memory_bit_for_bit(tmp_path):
    memory = {"m": random_adapter("m"), "v": random_adapter("v", dtype=torch.float32)}
    state = ServerState(random_adapter("R", dtype=torch.bfloat16), memory)
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 17, state)
    round, loaded = load_checkpoint(tmp_path)
    assert round == 17
    assert same(loaded.adapter, state.adapter)
    assert loaded.memory.keys() == memory.keys()
    assert all(same(loaded.memory[name], memory[name]) for name in memory)
    assert loaded.memory["v"]["layers.0.x.lora_A.weight"].dtype == torch.float32


def test_a_checkpoint_that_is_no_checkpoint_is_the_users_error(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="cannot read tensors from"):
        go(tmp_path)


# The clients' stores


def numbered(value: int) -> ClientState:
    return ClientState({SMOOTHING: Private({"a": torch.full((2,), float(value))})})


def value(state: ClientState) -> int | None:
    if not state.private:
        return None
    return int(unwrap_private(state.private[SMOOTHING])["a"][0])


@pytest.mark.parametrize(
    ("committed", "expected"),
    [(0, None), (1, None), (2, 2), (3, 2), (4, 2), (5, 5), (8, 5), (9, 9), (100, 9)],
)
def test_a_store_gives_the_latest_version_up_to_the_committed_round(tmp_path, committed, expected):
    store = ClientStore(tmp_path)
    for round in (5, 2, 9):
        store.save("anna", round, numbered(round))
    assert value(store.load("anna", committed)) == expected
    assert value(store.load("ben", committed)) is None


@pytest.mark.parametrize(
    ("committed", "left"),
    [(0, [2, 5, 9]), (2, [2, 5, 9]), (4, [2, 5, 9]), (5, [5, 9]), (8, [5, 9]), (9, [9])],
)
def test_pruning_keeps_what_a_resumed_run_can_ask_for(tmp_path, committed, left):
    store = ClientStore(tmp_path)
    for round in (2, 5, 9):
        store.save("anna", round, numbered(round))
        store.save("ben", round, numbered(round))
    before = value(store.load("anna", committed))
    store.prune("anna", committed)
    store.prune("anna", committed)
    names = [path.name for path in sorted((tmp_path / "anna").iterdir())]
    assert names == [f"state-{round:06d}.safetensors" for round in left]
    assert len([*(tmp_path / "ben").iterdir()]) == 3
    assert value(store.load("anna", committed)) == before


def test_saving_a_round_again_replaces_it(tmp_path):
    store = ClientStore(tmp_path)
    store.save("anna", 1, numbered(1))
    store.save("anna", 1, numbered(7))
    assert value(store.load("anna", 1)) == 7


def test_a_client_without_private_adapters_leaves_no_file(tmp_path):
    ClientStore(tmp_path).save("anna", 1, ClientState())
    assert [*tmp_path.iterdir()] == []


def test_several_private_adapters_come_back_under_their_names(tmp_path):
    store = ClientStore(tmp_path)
    kept = {"smoothing": random_adapter("S"), "own": random_adapter("own", dtype=torch.bfloat16)}
    store.save("anna", 1, ClientState({name: Private(a) for name, a in kept.items()}))
    loaded = store.load("anna", 1).private
    assert loaded.keys() == kept.keys()
    assert all(same(unwrap_private(loaded[name]), kept[name]) for name in kept)


def test_files_of_other_names_are_not_versions(tmp_path):
    store = ClientStore(tmp_path)
    store.save("anna", 1, numbered(1))
    for name in ("state-2.safetensors", "state-000003.safetensors.bak", ".state-000004.x.tmp"):
        (tmp_path / "anna" / name).write_bytes(b"x")
    assert value(store.load("anna", 9)) == 1
    store.prune("anna", 9)
    assert len([*(tmp_path / "anna").iterdir()]) == 4


def test_client_folders_and_states_are_their_owners_alone(tmp_path):
    go(tmp_path)
    folders = [path for path in (tmp_path / "clients").rglob("*") if path.is_dir()]
    states = [path for path in (tmp_path / "clients").rglob("*") if path.is_file()]
    assert {path.name for path in folders} == {*NAMES}
    assert len(states) == len(NAMES)  # pruned to one each
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in states} == {0o600}
