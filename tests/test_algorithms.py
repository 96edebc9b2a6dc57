"""Every algorithm in every kind of targets keeps one contract; and what each of them computes.

The local trainer is `tiny.ToyClient`, a pure function, so that what is compared is the
algorithms' own arithmetic, in float64 unless a test says otherwise.
"""

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch

from fedsdr.adapters import Adapter, Private, unwrap
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Schedule,
    ServerState,
    Stage,
    Update,
    check_update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.table import ALGORITHMS, TARGETS, build_algorithm
from fedsdr.algorithms.two_stream import SMOOTHING, Smoothing, conflict, two_stream
from fedsdr.errors import UserError
from fedsdr.metrics import Mean
from fedsdr.recipe import Federation, Local, Model, Recipe
from tiny import CLIENTS, RECORDS, ToyClient, random_adapter

ROUNDS = 3
LOCAL = Local(
    rectify_steps=3, rectify_lr=0.1, smooth_steps=2, smooth_lr=0.3,
    smoothing_state="keep", smoothing_context="base", rectify_alone=0.5,
)  # fmt: skip
REFUSED = {("local", "two_stream")}  # no shared adapter for a second stream to accompany
CASES = [case for case in product(ALGORITHMS, TARGETS) if case not in REFUSED]
MEANS = ("fedavg",)  # R^{t+1} is the weighted mean of what the clients trained
PRIVATE = ("local",)  # nothing is sent

every_algorithm = pytest.mark.parametrize(("name", "targets"), CASES)


def recipe(name: str, targets: Any) -> Recipe:
    federation = Federation(algorithm=name, targets=targets)
    return Recipe(model=Model(path="lab"), federation=federation, local=LOCAL)


def build(name: str, targets: str) -> Algorithm:
    return build_algorithm(recipe(name, targets))


class Played(NamedTuple):
    """What a few rounds left behind."""

    server: ServerState
    clients: dict[str, ClientState]
    updates: list[Update]
    stages: list[Stage]


def play(
    algorithm: Algorithm,
    cohort: Sequence[str] = CLIENTS,
    rounds: int = ROUNDS,
    dtype: torch.dtype = torch.float64,
) -> Played:
    """The round loop, with nothing around it."""
    server = algorithm.init(random_adapter("first", dtype=dtype))
    clients = {name: ClientState() for name in cohort}
    updates: list[Update] = []
    stages: list[Stage] = []
    for _ in range(rounds):
        shared = algorithm.broadcast(server)
        fold = algorithm.start(server)
        for name in cohort:
            toy = ToyClient(name, dtype)
            update, clients[name] = algorithm.client(shared, clients[name], toy)
            check_update(name, update, algorithm.uploads(server))
            fold = algorithm.add(fold, update)
            updates.append(update)
            stages += toy.stages
        server = algorithm.finish(server, fold)
    return Played(server, clients, updates, stages)


def furthest(a: Adapter, b: Adapter) -> float:
    assert a.keys() == b.keys()
    return max((float((a[key] - b[key]).abs().max()) for key in a), default=0.0)


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors inside adapters, states, updates and folds, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Private):
        return tensors(unwrap(value))
    if isinstance(value, dict):
        return [tensor for key in sorted(value) for tensor in tensors(value[key])]
    if isinstance(value, tuple | list):
        return [tensor for each in value for tensor in tensors(each)]
    if isinstance(value, ClientState | ServerState | Update):
        return tensors(vars(value))
    return []


def same_bits(a: Any, b: Any) -> bool:
    return len(tensors(a)) == len(tensors(b)) and all(
        x.dtype == y.dtype and torch.equal(x, y)
        for x, y in zip(tensors(a), tensors(b), strict=True)
    )


# The contract, for every row of the table


def fit_alone(targets: str, toy: Fit, shared: Adapter, s: Private | None) -> Any:
    """One client's round, written out: what R becomes, and S."""
    if targets != "two_stream":
        stage = Stage("", "shared", Schedule(3, 0.1), shared, targets=targets)
        return toy(stage).shared, None
    s = toy(Stage("", "private", Schedule(2, 0.3), None, s, "distilled")).private
    return toy(Stage("", "shared", Schedule(3, 0.1), shared, s, alone=0.5)).shared, s


@every_algorithm
@pytest.mark.parametrize("client", CLIENTS)
def test_a_federation_of_one_is_local_training(name, targets, client):
    played = play(build(name, targets), [client])
    toy = ToyClient(client)
    first = random_adapter("first")
    if name in PRIVATE:
        own = None
        for _ in range(ROUNDS):
            stage = Stage("", "private", Schedule(3, 0.1), private=own, targets=targets)
            own = toy(stage).private
        personal = build(name, targets).personal(first, played.clients[client])
        assert personal.shared is None
        assert furthest(unwrap(personal.private), unwrap(own)) == 0
        assert same_bits(played.server.adapter, first)
        assert all(update.change == {} for update in played.updates)
    elif name in MEANS:
        shared, s = first, None
        for _ in range(ROUNDS):
            shared, s = fit_alone(targets, toy, shared, s)
        assert furthest(played.server.adapter, shared) < 1e-12
        assert furthest(shared, first) > 0.1


@every_algorithm
def test_the_order_of_clients_does_not_matter(name, targets):
    forwards = play(build(name, targets))
    backwards = play(build(name, targets), CLIENTS[::-1])
    assert furthest(forwards.server.adapter, backwards.server.adapter) < 1e-12
    for client in CLIENTS:
        a, b = (tensors(played.clients[client]) for played in (forwards, backwards))
        assert all(torch.allclose(x, y, rtol=0, atol=1e-12) for x, y in zip(a, b, strict=True))


@every_algorithm
def test_the_same_inputs_give_the_same_bits(name, targets):
    a, b = play(build(name, targets)), play(build(name, targets))
    assert same_bits(a[:3], b[:3])
    assert [update.metrics for update in a.updates] == [update.metrics for update in b.updates]


@every_algorithm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adapters_keep_their_dtype_and_keys(name, targets, dtype):
    played = play(build(name, targets), dtype=dtype)
    like = random_adapter("first", dtype=dtype)
    assert played.server.adapter.keys() == like.keys()
    assert {tensor.dtype for tensor in tensors(played)} == {dtype}


@every_algorithm
def test_nothing_given_is_mutated(name, targets):
    algorithm = build(name, targets)
    clients = play(algorithm).clients  # with private states that have something in them
    first = random_adapter("first")
    server = algorithm.init(first)
    shared = algorithm.broadcast(server)
    given: list[Any] = [first, server, shared, clients]
    kept = [clone(each) for each in given]
    start = algorithm.start(server)
    one, _ = algorithm.client(shared, clients["anna"], ToyClient("anna"))
    two, _ = algorithm.client(shared, clients["ben"], ToyClient("ben"))
    half = algorithm.add(start, one)
    whole = algorithm.add(half, two)
    given += [start, one, two, half, whole]
    kept += [clone(each) for each in [start, one, two, half, whole]]
    algorithm.add(start, two)
    algorithm.add(half, one)
    algorithm.finish(server, whole)
    again = algorithm.finish(server, whole)
    assert same_bits(again, algorithm.finish(server, whole))
    algorithm.client(algorithm.broadcast(again), clients["anna"], ToyClient("anna"))
    algorithm.personal(shared, clients["anna"])
    assert all(same_bits(a, b) for a, b in zip(given, kept, strict=True))


def clone(value: Any) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors(value)]


@every_algorithm
def test_what_a_client_keeps_is_private_and_what_it_sends_is_not(name, targets):
    played = play(build(name, targets))
    kept = [p for state in played.clients.values() for p in state.private.values()]
    assert bool(kept) == (name in PRIVATE or targets == "two_stream")
    for private in kept:
        assert type(private) is Private
        with pytest.raises(TypeError, match="never leaves"):
            pickle.dumps(private)
        with pytest.raises(TypeError, match="never leaves"):
            copy.deepcopy(private)
    storages = {tensor.data_ptr() for tensor in tensors([*kept])}
    assert not storages & {tensor.data_ptr() for tensor in tensors(played.updates)}


@every_algorithm
def test_updates_weigh_records_and_carry_finite_means(name, targets):
    played = play(build(name, targets))
    assert [update.weight for update in played.updates] == [*RECORDS.values()] * ROUNDS
    for update in played.updates:
        assert update.metrics["loss/rectify"].weight == LOCAL.rectify_steps
        assert all(type(mean) is Mean for mean in update.metrics.values())
        assert all(math.isfinite(number) for mean in update.metrics.values() for number in mean)


@every_algorithm
def test_the_first_broadcast_is_the_first_adapter(name, targets):
    algorithm = build(name, targets)
    first = random_adapter("first")
    shared = algorithm.broadcast(algorithm.init(first))
    assert same_bits(shared, {} if name in PRIVATE else first)
    assert same_bits(algorithm.init(first).adapter, first)


@every_algorithm
def test_a_round_without_participants_is_an_error_where_something_is_aggregated(name, targets):
    algorithm = build(name, targets)
    state = algorithm.init(random_adapter("first"))
    if name in PRIVATE:
        assert algorithm.finish(state, algorithm.start(state)) == state
        return
    with pytest.raises(ValueError, match="more than 0"):
        algorithm.finish(state, algorithm.start(state))


@every_algorithm
def test_targets_decide_what_is_learnt_from(name, targets):
    asked = [(stage.name, stage.targets) for stage in play(build(name, targets)).stages]
    round = {
        "raw": [("rectify", "raw")],
        "distilled": [("rectify", "distilled")],
        "two_stream": [("smooth", "distilled"), ("rectify", "raw")],
    }[targets]
    assert asked == round * len(CLIENTS) * ROUNDS


def test_the_table_names_every_row():
    assert all(row.line and row.citation for row in ALGORITHMS.values())
    assert set(TARGETS) == {"raw", "distilled", "two_stream"}
    assert {name for name, _ in CASES} == {*ALGORITHMS}


def test_an_unknown_algorithm_lists_the_choices():
    with pytest.raises(UserError, match="'fedavgg' is not known: choose from ") as caught:
        build("fedavgg", "raw")
    assert all(name in str(caught.value) for name in ALGORITHMS)


@pytest.mark.parametrize(("name", "targets"), sorted(REFUSED))
def test_algorithms_without_a_shared_adapter_have_no_second_stream(name, targets):
    with pytest.raises(UserError, match=r"federation\.targets") as caught:
        build(name, targets)
    assert "'raw' or 'distilled'" in str(caught.value)


# Updates that cannot be aggregated

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


def changed(**parts: Any) -> Adapter:
    change = {**{key: tensor.clone() for key, tensor in LIKE.items()}, **parts}
    return {key: tensor for key, tensor in change.items() if tensor is not None}


def with_one(value: float) -> torch.Tensor:
    tensor = torch.zeros(4)
    tensor[3] = value
    return tensor


@pytest.mark.parametrize(
    ("change", "weight", "reason"),
    [
        (changed(), 0, "has weight 0"),
        (changed(), 0.0, "has weight 0.0"),
        (changed(), -3, "has weight -3"),
        (changed(), math.nan, "has weight nan"),
        (changed(), math.inf, "has weight inf"),
        (changed(b=with_one(math.nan)), 1, "NaN or infinite"),
        (changed(b=with_one(math.inf)), 1, "NaN or infinite"),
        (changed(b=with_one(-math.inf)), 1, "NaN or infinite"),
        (changed(b=None), 1, "missing keys ['b']"),
        (changed(c=torch.zeros(1)), 1, "unexpected keys ['c']"),
        (changed(b=None, B=torch.zeros(4)), 1, "missing keys ['b'], unexpected keys ['B']"),
        ({}, 1, "missing keys ['a', 'b']"),
        (changed(a=torch.zeros(3, 2)), 1, "a has shape (3, 2), expected (2, 3)"),
        (changed(b=torch.zeros(4, 1)), 1, "b has shape (4, 1), expected (4,)"),
        (changed(b=torch.zeros(1)), 1, "b has shape (1,), expected (4,)"),
        (changed(b=torch.zeros(4).double()), 1, "b is torch.float64, expected torch.float32"),
        (changed(b=torch.zeros(4).half()), 1, "b is torch.float16, expected torch.float32"),
    ],
)
def test_updates_that_are_refused(change, weight, reason):
    with pytest.raises(ValueError, match="update of client 'ben'") as caught:
        check_update("ben", Update(change, weight), LIKE)
    assert reason in str(caught.value)


def test_an_update_of_right_keys_shapes_and_numbers_is_let_pass():
    check_update("ben", Update(changed(b=with_one(-1e30)), 0.5), LIKE)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Update(Private({"a": torch.zeros(1)}), 1), "a dict of tensors, not Private"),
        (lambda: Update({"a": Private({"b": torch.zeros(1)})}, 1), "but a is Private(1 tensors)"),
        (lambda: Update({"a": [1.0]}, 1), "but a is [1.0]"),
        (lambda: Update({}, 1, {"m": 1.0}), "but m is 1.0"),
        (lambda: Update({}, 1, {"m": torch.zeros(3)}), "but m is tensor"),
        (lambda: Update({}, 1, {"m": Private({})}), "but m is Private"),
    ],
)
def test_only_plain_tensors_and_means_can_be_sent(make: Callable[[], Update], reason):
    with pytest.raises(TypeError, match="an update") as caught:
        make()
    assert reason in str(caught.value)


# FedAvg by hand


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
    algorithm = fedavg(Schedule(1, 0.1))
    state = algorithm.init(number(2.0))
    fold = algorithm.start(state)
    for change, weight in updates:
        fold = algorithm.add(fold, Update(number(change), weight))
    assert algorithm.finish(state, fold).adapter["w"].item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("cohort", [("ben",), ("anna", "cleo"), ("ben", "cleo"), CLIENTS])
def test_fedavg_of_toy_clients_is_the_weighted_mean_of_their_adapters(cohort):
    first = random_adapter("first")
    stage = Stage("rectify", "shared", Schedule(3, 0.1), first)
    trained = {name: ToyClient(name)(stage).shared for name in cohort}
    total = sum(RECORDS[name] for name in cohort)
    expected = {
        key: sum(trained[name][key] * (RECORDS[name] / total) for name in cohort) for key in first
    }
    assert furthest(play(build("fedavg", "raw"), cohort, 1).server.adapter, expected) < 1e-12


def test_fedavg_sums_in_float64():
    """A thousand small changes in float32 beside a large one: none of them is rounded away."""
    algorithm = fedavg(Schedule(1, 0.1))
    state = algorithm.init({"w": torch.zeros(1)})
    fold = algorithm.add(algorithm.start(state), Update({"w": torch.tensor([2.0**24])}, 1))
    for _ in range(1000):
        fold = algorithm.add(fold, Update({"w": torch.ones(1)}, 1))
    fold = algorithm.add(fold, Update({"w": torch.tensor([-(2.0**24)])}, 1))
    assert algorithm.finish(state, fold).adapter["w"].item() == pytest.approx(1000 / 1002, rel=1e-6)


def test_memory_of_the_server_state_is_left_alone_by_fedavg():
    algorithm = fedavg(Schedule(1, 0.1))
    state = ServerState(number(0.0), {"moment": number(3.0)})
    fold = algorithm.add(algorithm.start(state), Update(number(1.0), 1))
    assert same_bits(algorithm.finish(state, fold).memory["moment"], number(3.0))


# Two streams


def streams(**options: Any) -> Algorithm:
    chosen = {"schedule": Schedule(2, 0.3), "state": "keep", "context": "base", "alone": 0.5}
    return two_stream(fedavg(Schedule(3, 0.1)), Smoothing(**{**chosen, **options}))


@pytest.mark.parametrize("context", ["joint", "base"])
@pytest.mark.parametrize("keep", ["keep", "reset"])
@pytest.mark.parametrize("alone", [0.0, 0.25, 1.0])
def test_two_stream_asks_for_exactly_these_stages(context, keep, alone):
    algorithm = streams(context=context, state=keep, alone=alone)
    state = ClientState({"other": Private({})})
    before: Private | None = None
    for round in range(3):
        toy = ToyClient("ben")
        shared = random_adapter("shared", round)
        _, state = algorithm.client(shared, state, toy)
        smooth, rectify = toy.stages
        s = state.private[SMOOTHING]

        assert (smooth.name, smooth.trains, smooth.targets) == ("smooth", "private", "distilled")
        assert smooth.schedule == Schedule(2, 0.3)
        assert smooth.shared is (shared if context == "joint" else None)
        assert smooth.private is (before if keep == "keep" else None)
        assert smooth.alone == 0

        assert (rectify.name, rectify.trains, rectify.targets) == ("rectify", "shared", "raw")
        assert rectify.schedule == Schedule(3, 0.1)
        assert rectify.shared is shared
        assert rectify.private is s
        assert rectify.alone == alone
        assert {*state.private} == {"other", SMOOTHING}
        before = s


@pytest.mark.parametrize("context", ["joint", "base"])
@pytest.mark.parametrize("keep", ["keep", "reset"])
def test_a_stream_that_takes_no_steps_changes_nothing(context, keep):
    """S starts at zero: unless it learns, FedSDR is FedAvg on raw data, bit for bit."""
    quiet = play(streams(schedule=Schedule(0, 0.3), context=context, state=keep))
    assert same_bits(quiet.server, play(fedavg(Schedule(3, 0.1))).server)
    loud = play(streams(context=context, state=keep))
    assert furthest(quiet.server.adapter, loud.server.adapter) > 0.01


def test_always_alone_is_fedavg_on_raw_data():
    assert same_bits(play(streams(alone=1.0)).server, play(fedavg(Schedule(3, 0.1))).server)


@pytest.mark.parametrize("context", ["joint", "base"])
def test_kept_streams_go_on_and_reset_ones_start_anew(context):
    kept, reset = (play(streams(context=context, state=it)) for it in ("keep", "reset"))
    once = play(streams(context=context, state="reset"), rounds=1)
    for client in CLIENTS:
        a, b, c = (unwrap(it.clients[client].private[SMOOTHING]) for it in (kept, reset, once))
        assert furthest(a, b) > 0.01
        if context == "base":  # then each round asks the same of it
            assert furthest(b, c) == 0


def test_a_personal_model_is_the_global_one_with_the_kept_stream():
    algorithm = streams()
    played = play(algorithm)
    shared = random_adapter("another")
    personal = algorithm.personal(shared, played.clients["cleo"])
    assert personal.shared is shared
    assert personal.private is played.clients["cleo"].private[SMOOTHING]
    assert algorithm.personal(shared, ClientState()) == (shared, None)


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The weight B A of each layer, formed."""
    return {
        path: adapter[f"{path}.lora_B.weight"] @ adapter[f"{path}.lora_A.weight"] for path in "xy"
    }


def flat(*changes: dict[str, torch.Tensor]) -> torch.Tensor:
    """after - before, or the weights themselves, as one vector."""
    after, *before = changes
    moved = {path: after[path] - before[0][path] if before else after[path] for path in "xy"}
    return torch.cat([moved[path].flatten() for path in "xy"])


def test_conflict_is_that_of_the_products_formed_explicitly():
    shared, change = random_adapter("R"), random_adapter("dR")
    s, s_after = random_adapter("S"), random_adapter("S'")
    after = {key: shared[key] + change[key] for key in shared}
    dr, ds = flat(dense(after), dense(shared)), flat(dense(s_after), dense(s))
    expected = {
        "conflict/cosine": float(dr @ ds / dr.norm() / ds.norm()),
        "norm/R": float(flat(dense(after)).norm()),
        "norm/S": float(flat(dense(s_after)).norm()),
    }
    given = conflict(shared, change, Private(s), Private(s_after))
    assert {name: mean.value for name, mean in given.items()} == pytest.approx(expected, rel=1e-9)
    assert {mean.weight for mean in given.values()} == {1}
    assert abs(expected["conflict/cosine"]) > 0.01


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0), (0, 0.0)])
def test_streams_that_agree_oppose_or_rest(sign, expected):
    """S takes the step that R takes, the opposite one, or none."""
    zero = {key: torch.zeros_like(tensor) for key, tensor in random_adapter("R").items()}
    step = random_adapter("step")
    turned = {key: t * sign if "lora_B" in key else t for key, t in step.items()}
    given = conflict(zero, step, Private(zero), Private(turned))
    assert given["conflict/cosine"].value == pytest.approx(expected, abs=1e-12)


def test_two_stream_reports_conflict_and_both_losses_of_each_client():
    played = play(streams(), rounds=2)
    names = {"loss/rectify", "loss/smooth", "conflict/cosine", "norm/R", "norm/S"}
    assert all({*update.metrics} == names for update in played.updates)
    client, toy = played.updates[1], ToyClient("ben")
    first = random_adapter("first")
    smoothed = toy(Stage("", "private", Schedule(2, 0.3), targets="distilled"))
    expected = conflict(first, client.change, smoothed.before, smoothed.private)
    assert {name: client.metrics[name] for name in expected} == expected
    assert client.metrics["loss/smooth"] == smoothed.loss
