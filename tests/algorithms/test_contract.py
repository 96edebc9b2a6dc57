"""Every algorithm, in every kind of targets and with every transform, keeps one contract.

The local trainer is `support.toy_clients.ToyClient`, a pure function, so that what is
compared is the algorithms' own arithmetic, in float64 unless a test says otherwise.
"""

import copy
import math
import pickle
import re
from functools import cache
from itertools import combinations, product
from types import ModuleType
from typing import Any

import pytest
import torch

from fedsdr.algorithms import table
from fedsdr.algorithms.aggregation.folding import merge_folded
from fedsdr.algorithms.contract import (
    ClientState,
    Round,
    Schedule,
    ServerState,
    Stage,
    Update,
    check_update,
)
from fedsdr.algorithms.table import (
    ALGORITHMS,
    COMPRESSION,
    LORA_AGGREGATION,
    TABLES,
)
from fedsdr.core import seeds
from fedsdr.core.adapters import Private, unwrap_private
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean
from fedsdr.federation.checkpoint import load_checkpoint, save_checkpoint
from fedsdr.recipe import methods
from fedsdr.recipe.sections.evaluate import Evaluate
from fedsdr.training.store import ClientStore
from support.algorithm_cases import (
    ALONE,
    CASES,
    CHOICES,
    PAIRS,
    PLAIN,
    PREFIX,
    ROWS,
    goes_together,
    learnt,
    make,
    name_of,
    parts,
    targets_of,
)
from support.covering_arrays import allowed_pairs, covering, pairs_of
from support.repository import REPOSITORY
from support.toy_clients import CLIENTS, RECORDS, ToyClient, random_adapter, secret_round
from support.toy_rounds import (
    LOCAL,
    ROUNDS,
    Played,
    build,
    dense,
    furthest,
    play,
    recipe,
    same_bits,
    tensors,
)

every_case = pytest.mark.parametrize("name", CASES)


@cache
def once(name: str) -> Played:
    """Rounds of a case, played once for all tests that only look at them."""
    return play(make(name))


def test_the_cases_show_every_choice_alone_and_every_pair_that_goes_together():
    shown = [row for row in ROWS if name_of(row) in CASES]
    assert all(goes_together(row) for row in shown)
    assert {pair for row in shown for pair in pairs_of(row)} == PAIRS
    plain = {key: names[0] for key, names in CHOICES.items()}
    assert set(plain.values()) == {*PLAIN, "raw"}
    for key, rows in TABLES.items():
        section = key.rpartition(".")[2]
        unnamed = {"two_shared_streams"}  # test_two_shared_streams.py
        assert {row[section] for row in ALONE} == rows.keys() - unnamed
    # What is left out is what is refused, and that two choices alone decide.
    for one, other in combinations(CHOICES, 2):
        for a, b in product(CHOICES[one], CHOICES[other]):
            pair = frozenset(((one, a), (other, b)))
            assert (pair in PAIRS) == goes_together({**plain, one: a, other: b})


def test_a_covering_array_is_smaller_than_the_product():
    digits = {str(key): list("abc") for key in range(5)}
    pairs = allowed_pairs(digits, lambda row: not (row["0"] == "b" and row["3"] == "c"))
    rows = covering(digits, pairs)
    assert {pair for row in rows for pair in pairs_of(row)} == pairs
    assert len(pairs) == 10 * 9 - 1
    assert len(rows) < 20


def at(number: int) -> Round:
    return secret_round(number, 3)


def close(a: Any, b: Any, tolerance: float) -> bool:
    return len(tensors(a)) == len(tensors(b)) and all(
        torch.allclose(x, y, rtol=tolerance, atol=tolerance)
        for x, y in zip(tensors(a), tensors(b), strict=True)
    )


@every_case
def test_the_order_of_clients_does_not_matter(name):
    """Where order decides what noise an update gets, its sum is what must not change."""
    forwards, backwards = once(name), play(make(name), CLIENTS[::-1])
    algorithm = make(name)
    a, b = (whole_model(algorithm, played.server) for played in (forwards, backwards))
    assert close(a, b, 1e-10)
    if "flora" not in parts(name) and "fedex" not in parts(name):  # factors of one product differ
        assert close(forwards.server.adapter, backwards.server.adapter, 1e-9)
        for client in CLIENTS:
            assert close(forwards.clients[client], backwards.clients[client], 1e-9)


def whole_model(algorithm: Any, server: ServerState) -> dict[str, torch.Tensor]:
    """The weights of the global model, or of what of it is shared."""
    deployed = algorithm.deployed(server)
    return dense(merge_folded(deployed)) if deployed else dict(server.adapter)


@every_case
def test_the_same_inputs_give_the_same_bits(name):
    a, b = once(name), play(make(name))
    assert same_bits(a[:3], b[:3])
    assert [update.metrics for update in a.updates] == [update.metrics for update in b.updates]
    assert a.server.metrics == b.server.metrics


@every_case
def test_what_is_kept_has_the_first_adapters_dtype_and_keys(name):
    dtype = torch.float32  # float64, the others' tests
    played = play(make(name), dtype=dtype)
    like = make(name).init(random_adapter("first", dtype=dtype)).adapter
    assert played.server.adapter.keys() == like.keys()
    assert all(played.server.adapter[key].shape == like[key].shape for key in like)
    assert {tensor.dtype for tensor in tensors([played.server, played.clients])} == {dtype}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors(played.server))


@every_case
def test_nothing_given_is_mutated(name):
    algorithm = make(name)
    played = once(name)  # with memories that have something in them
    clients, server = played.clients, played.server
    shared = algorithm.broadcast(server)
    given: list[Any] = [server, shared, clients]
    kept = [clone(each) for each in given]
    start = algorithm.start(server, at(4))
    cohort = [
        algorithm.client(shared, clients[name], ToyClient(name), at(4))[0] for name in CLIENTS
    ]
    folds = [start]
    for update in cohort:
        folds.append(algorithm.add(folds[-1], update))
    given += [*cohort, *folds]
    kept += [clone(each) for each in [*cohort, *folds]]
    algorithm.add(start, cohort[1])
    algorithm.add(folds[1], cohort[0])
    after = algorithm.finish(server, folds[-1], at(4))
    assert same_bits(after, algorithm.finish(server, folds[-1], at(4)))
    algorithm.client(algorithm.broadcast(after), clients["anna"], ToyClient("anna"), at(5))
    algorithm.personal(shared, clients["anna"])
    algorithm.deployed(after)
    assert all(same_bits(a, b) for a, b in zip(given, kept, strict=True))


def clone(value: Any) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors(value)]


@every_case
def test_what_a_client_keeps_is_private_and_what_it_sends_is_not(name):
    played = once(name)
    kept = [p for state in played.clients.values() for p in state.private.values()]
    personal = {"local", "ditto", "feddpa", "fedsa", "fedper"}
    assert bool(kept) == (targets_of(name) == "two_stream" or bool(parts(name) & personal))
    for private in kept:
        assert type(private) is Private
        with pytest.raises(TypeError, match="never leaves"):
            pickle.dumps(private)
        with pytest.raises(TypeError, match="never leaves"):
            copy.deepcopy(private)
    storages = {tensor.data_ptr() for tensor in tensors([*kept])}
    assert not storages & {tensor.data_ptr() for tensor in tensors(played.updates)}


@every_case
def test_updates_weigh_records_and_carry_finite_means(name):
    played = once(name)
    weights = [*RECORDS.values()] if "privacy" not in name else [1.0] * len(CLIENTS)
    assert [update.weight for update in played.updates] == weights * ROUNDS
    for update in played.updates:
        if "privacy" in name:
            assert update.metrics == {}
            continue
        assert update.metrics["loss/rectify"].weight == LOCAL.rectify_steps
        assert all(type(mean) is Mean for mean in update.metrics.values())
        assert all(math.isfinite(number) for mean in update.metrics.values() for number in mean)


@every_case
def test_a_broken_update_is_refused_by_its_clients_name(name):
    algorithm = make(name)
    state = algorithm.init(random_adapter("first"))
    shared, like = algorithm.broadcast(state), algorithm.uploads(state, at(1))
    update, _ = algorithm.client(shared, ClientState(), ToyClient("ben"), at(1))
    check_update("ben", update, like, algorithm.ranks)
    change = update.change
    extra = {"layers.9.x.lora_A.weight": torch.zeros(2, 3)}
    broken = [Update(change, 0.0), Update({**change, **extra}, update.weight)]
    if "local" not in parts(name):  # which sends no tensors that could be wrong
        key = next(k for k in change if change[k].is_floating_point())
        tensor = change[key]
        larger = {key: tensor.repeat(*([3] * tensor.dim()))}
        for wrong in ({key: tensor * torch.nan}, larger):
            broken.append(Update({**change, **wrong}, update.weight))
        broken.append(Update({k: t for k, t in change.items() if k != key}, update.weight))
    for each in broken:
        with pytest.raises(ValueError, match="update of client 'ben'"):
            check_update("ben", each, like, algorithm.ranks)


@every_case
def test_the_first_model_is_the_first_adapter(name):
    algorithm = make(name)
    first = random_adapter("first")
    deployed = algorithm.deployed(algorithm.init(first))
    shares_no_model = bool(parts(name) & {"local", "fedsa", "fedper"})
    assert same_bits(deployed, {} if shares_no_model else first)


@every_case
def test_a_round_without_participants_is_an_error_where_something_is_aggregated(name):
    algorithm = make(name)
    state = algorithm.init(random_adapter("first"))
    fold = algorithm.start(state, at(1))
    if "local" in parts(name):
        assert algorithm.finish(state, fold, at(1)) == state
        return
    with pytest.raises((ValueError, UserError), match=r"more than 0|at least"):
        algorithm.finish(state, fold, at(1))


@every_case
def test_targets_decide_what_is_learnt_from(name):
    asked = {(stage.name, stage.targets) for stage in once(name).stages}
    expected = {("rectify", learnt(name))}
    if targets_of(name) == "two_stream":
        expected |= {("smooth", "distilled")}
    if parts(name) & {"ditto", "feddpa"}:
        expected |= {("personal", learnt(name))}
    assert asked == expected


@every_case
def test_the_loss_is_that_of_every_stage_but_the_smoothing_one(name):
    kind = next(iter(parts(name) & {"soft", "on_policy"}), "cross_entropy")
    asked = {stage.name: stage.loss.kind for stage in once(name).stages}
    smooth = {"smooth": "cross_entropy"} if targets_of(name) == "two_stream" else {}
    assert asked == dict.fromkeys(asked, kind) | smooth


COHORTS = {1: ("ben",), 2: ("cleo", "anna"), 3: CLIENTS}


@every_case
def test_those_who_stay_at_home_change_nothing_and_keep_what_they_have(name):
    if "krum" in parts(name):
        pytest.skip("Krum needs more updates than a cohort of one has")
    algorithm = make(name)
    two = play(algorithm, rounds=2, cohorts=COHORTS.__getitem__)
    three = play(algorithm, rounds=3, cohorts=COHORTS.__getitem__)
    one = play(algorithm, rounds=1, cohorts=COHORTS.__getitem__)
    assert same_bits(one.clients["anna"], ClientState())
    assert same_bits(two.clients["ben"], one.clients["ben"])
    assert same_bits(three.updates[:3], two.updates)
    # What anna would have learnt has no part in round 1: ben alone in the federation is the same.
    alone = play(algorithm, ["ben"], rounds=1)
    assert same_bits(alone.server, one.server)


@every_case
def test_a_resumed_run_is_the_straight_one(name, tmp_path):
    """What the server and the clients keep goes to disk and comes back after every round."""
    store = ClientStore(tmp_path / "clients")

    def reload(state: Any) -> Any:
        if isinstance(state, ServerState):
            save_checkpoint(tmp_path, 1, state)
            loaded = load_checkpoint(tmp_path)
            assert loaded is not None
            return loaded[1]
        store.save("someone", 1, state)
        again = store.load("someone", 1) if tensors(state) else ClientState()
        return again

    straight, resumed = once(name), play(make(name), keep=reload)
    assert same_bits(straight[:3], resumed[:3])


NOT_EXACT = {"fedavgm", "fedadagrad", "fedadam", "fedyogi", "feddyn", "clipping", "krum"}
NOT_EXACT |= COMPRESSION.keys()
EXACT_FOR_ONE = [case for case in CASES if not parts(case) & NOT_EXACT and "privacy" not in case]


@pytest.mark.parametrize("name", EXACT_FOR_ONE)
def test_a_federation_of_one_is_local_training(name):
    """Its model after a round is what the client trained, whatever the aggregation does to it."""
    client = "ben"
    algorithm = make(name)
    played = play(algorithm, [client], rounds=1)
    trained = next(
        f for s, f in zip(played.stages, played.fits, strict=True) if s.name == "rectify"
    )
    deployed = algorithm.deployed(played.server)
    if not deployed:  # then it is the client's own
        sent = algorithm.broadcast(played.server)
        if parts(name) & {"ditto"}:
            return
        own = algorithm.personal(sent, played.clients[client])
        deployed = {**(own.shared or {}), **unwrap_private(own.own)}
    weights, wanted = dense(merge_folded(deployed)), dense(unwrap_private(trained.after))
    assert furthest(weights, wanted) < 1e-10
    assert furthest(wanted, dense(unwrap_private(trained.before))) > 0.01


@pytest.mark.parametrize("targets", PREFIX)
@pytest.mark.parametrize("algorithm", ["fedavg", "local"])
def test_a_federation_of_one_follows_local_training_for_rounds(targets, algorithm):
    """Round after round, to the last digits: what plain training of R (and S) would do."""
    name = f"{PREFIX[targets]}{algorithm}"
    played = play(make(name), ["ben"])
    toy, s, own = ToyClient("ben"), None, None
    shared = random_adapter("first") if algorithm == "fedavg" else None
    for _ in range(ROUNDS):
        if targets == "two_stream":
            s = toy(Stage("", "S", Schedule(2, 0.3), private=s, targets="distilled")).after
        alone = 0.5 if s is not None else 0.0
        stage = Stage("", "R", Schedule(3, 0.1), shared, own, s, targets=learnt(name), alone=alone)
        fitted = toy(stage)
        shared, own = (fitted.shared, None) if algorithm == "fedavg" else (None, fitted.after)
    if algorithm == "fedavg":
        assert furthest(played.server.adapter, shared) < 1e-12
    else:
        personal = make(name).personal({}, played.clients["ben"])
        assert furthest(unwrap_private(personal.own), unwrap_private(own)) == 0


HAS_GLOBAL = [n for n in CASES if not parts(n) & {"local", "fedsa", "fedper"}]


@pytest.mark.parametrize("name", [n for n in HAS_GLOBAL if "central privacy" not in n])
def test_measuring_the_aggregation_error_changes_nothing_else(name):
    plain, measured = once(name), play(make(name, evaluate=Evaluate(aggregation_error=True)))
    assert same_bits(plain[:3], measured[:3])
    extra = measured.server.metrics.keys() - plain.server.metrics.keys()
    assert extra == {"aggregation/error", "aggregation/lost"}


@pytest.mark.parametrize(
    ("name", "same_as", "limits"),
    [
        ("clipping", "trimmed_mean", {"clipping": {"norm": math.inf}}),
        ("topk", "fedavg", {"topk": {"share": 1.0}}),
        ("fedprox", "fedavg", {"fedprox": {"mu": 0.0}}),
        ("fedavgm", "fedavg", {"fedavgm": {"lr": 1.0, "momentum": 0.0}}),
        ("trimmed_mean+fedavgm", "trimmed_mean", {"fedavgm": {"momentum": 0.0}}),
        ("scaffold+flexlora+topk", "scaffold+flexlora", {"topk": {"share": 1.0}}),
        ("ditto", "fedavg", {"ditto": {"strength": 0.0}}),
    ],
)
@pytest.mark.parametrize("prefix", PREFIX.values())
def test_at_its_limit_a_choice_makes_no_difference(prefix, name, same_as, limits):
    limit, other = play(build(prefix + name, options=limits)), play(build(prefix + same_as))
    assert close(limit.server.adapter, other.server.adapter, 1e-12)
    if name != "ditto":  # which leaves the global model alone in any case
        free = play(build(prefix + name, options={"clipping": {"norm": 0.5}}))
        assert furthest(limit.server.adapter, free.server.adapter) > 1e-6


def test_cohorts_draw_from_seeds_alone():
    """Noise and fresh adapters depend on the round's seed, not on a global generator."""
    torch.manual_seed(1)
    a = play(make("local privacy fedsdr+flora"))
    torch.manual_seed(2)
    assert same_bits(a[:3], play(make("local privacy fedsdr+flora"))[:3])
    assert seeds.derive_seed(0, "a") != seeds.derive_seed(0, "b")


# The worked example of CONTRIBUTING.md


CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the file that the page shows, and adds the row that it shows; returns its name."""
    file, row = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)[:2]
    module = ModuleType("example")
    exec(compile(file, "CONTRIBUTING.md", "exec"), vars(module))
    scope = {**vars(module), "AlgorithmRow": table.AlgorithmRow}
    ((name, added),) = eval("{" + row + "}", scope).items()
    monkeypatch.setitem(ALGORITHMS, name, added)
    monkeypatch.setitem(methods.CHOICE_KEYS, name, "federation.algorithm")
    assert table.ALGORITHMS[name].line
    return str(name)


def test_a_new_algorithm_is_a_file_and_a_row(example, tmp_path):
    for prefix in PREFIX.values():
        name = prefix + example
        test_the_order_of_clients_does_not_matter(name)
        test_the_same_inputs_give_the_same_bits(name)
        test_nothing_given_is_mutated(name)
        test_what_a_client_keeps_is_private_and_what_it_sends_is_not(name)
        test_updates_weigh_records_and_carry_finite_means(name)
        test_the_first_model_is_the_first_adapter(name)
        test_targets_decide_what_is_learnt_from(name)
        test_those_who_stay_at_home_change_nothing_and_keep_what_they_have(name)
        test_a_resumed_run_is_the_straight_one(name, tmp_path)
    for aggregation in LORA_AGGREGATION.keys() - {"flora", "factors"}:
        test_nothing_given_is_mutated(f"{example}+{aggregation}")
    assert recipe(example).federation.algorithm == example
