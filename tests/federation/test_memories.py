"""SCAFFOLD's and FedDyn's server remembers the weighted mean of what its clients do, after every
round: whoever is away, late, refused or new, and whatever is done to updates on the way."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fedsdr.algorithms.contract import Algorithm, ClientState, Round, ServerState
from fedsdr.algorithms.feddyn import GRADIENT
from fedsdr.algorithms.scaffold import CONTROL
from fedsdr.algorithms.table import ALGORITHMS
from fedsdr.core.adapters import Adapter, add, norm, scale, weighted_mean
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.protocol.messages import Answer, Request
from fedsdr.deploy.protocol.signing import UNSIGNED
from fedsdr.deploy.server.dispatcher import RequestDispatcher
from fedsdr.deploy.server.engine import AdapterShape, RemoteEngine
from fedsdr.federation.checkpoint import load_checkpoint, save_checkpoint
from fedsdr.federation.rounds import Absent, Engine, Participant, run_round
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.recipe import Recipe
from support.algorithm_cases import PAIRS, ROWS, name_of
from support.parabola_clients import some
from support.toy_clients import CLIENTS, RECORDS, ToyClient, random_adapter
from support.toy_rounds import build, furthest, play, recipe

MEMORIES = {"scaffold": CONTROL, "feddyn": GRADIENT}
ROUNDS = 7
CASES = list(
    dict.fromkeys(
        f"{algorithm}+{other}"
        for algorithm in MEMORIES
        for row in ROWS
        for other in [name_of({**row, "algorithm": "fedavg", "targets": "raw"})]
        if all(
            frozenset((("algorithm", algorithm), (key, name))) in PAIRS
            for key, name in row.items()
            if key not in ("algorithm", "targets")
        )
    )
)
CASES = [case.replace("+fedavg", "") for case in CASES]


class Plan(NamedTuple):
    """Of a round: who is asked, who gives no answer, and whose is refused."""

    asked: list[str]
    away: set[str]
    broken: set[str]


def plans(seed: int) -> list[Plan]:
    """Nobody but anna is sure to come in round 1; every client does some time."""
    draw, made = random.Random(seed), [Plan(["anna"], set(), set())]
    while len(made) < ROUNDS:
        asked = sorted(draw.sample(CLIENTS, draw.randint(1, 3)))
        away = {client for client in asked[1:] if draw.random() < 0.3}
        broken = {client for client in asked[1:] if draw.random() < 0.2}
        made.append(Plan(asked, away, broken))
    return made


class Clients:
    """Toy clients as they are in a deployment: a round that did not count leaves no trace."""

    def __init__(self, algorithm: Algorithm, plans: Sequence[Plan]) -> None:
        self.algorithm, self.plans = algorithm, plans
        self.states = dict.fromkeys(CLIENTS, ClientState())

    def answer(self, client: str, shared: Adapter, round: int) -> Participant | Absent:
        plan = self.plans[round - 1]
        if client in plan.away:
            return Absent(client, "it is away")
        update, state = self.algorithm.client(
            shared, self.states[client], ToyClient(client), Round(round, round)
        )
        if client in plan.broken:
            wrong = {
                key: t * torch.nan for key, t in update.change.items() if t.is_floating_point()
            }
            return Participant(client, replace(update, change={**update.change, **wrong}))
        self.states[client] = state
        return Participant(client, update)


class Simulated(Clients):
    """An engine; it knows all clients from the start, or each from its first answer on."""

    def __init__(self, algorithm: Algorithm, plans: Sequence[Plan], all_known: bool) -> None:
        super().__init__(algorithm, plans)
        self.known = set(CLIENTS) if all_known else set()

    def clients(self) -> Sequence[str]:
        return CLIENTS

    def run_round(
        self, algorithm: Algorithm, shared: Adapter, round: int, cohort: Sequence[str]
    ) -> Iterator[Participant | Absent]:
        for client in cohort:
            answer = self.answer(client, shared, round)
            self.known |= {client} if isinstance(answer, Participant) else set()
            yield answer

    def population(self) -> float:
        return float(sum(RECORDS[client] for client in self.known))

    def commit(self, round: int, cohort: Sequence[str]) -> None:
        pass


def check(
    name: str, server: ServerState, states: Mapping[str, ClientState], population: float
) -> None:
    """The identity, and that it is not one of zeros."""
    memory = MEMORIES[name.split("+")[0]]
    held = server.memory[memory]
    mean = {key: torch.zeros_like(tensor) for key, tensor in held.items()}
    for client, state in states.items():
        mean = add(mean, scale(state.recall(memory, like=held), RECORDS[client] / population))
    assert furthest(held, mean) < 1e-12
    assert any(bool(tensor.any()) for tensor in held.values())
    assert server.population == population


def played(engine: Engine, algorithm: Algorithm, plans: Sequence[Plan], folder: Path) -> Any:
    """The state after each round, from disk."""
    server = algorithm.init(random_adapter("first"))
    for number, plan in enumerate(plans, start=1):
        server, row = run_round(algorithm, engine, server, Round(number, 1), plan.asked, quorum=1)
        assert set(row["clients"]) == {*plan.asked} - plan.away - plan.broken
        save_checkpoint(folder, number, server)
        loaded = load_checkpoint(folder)
        assert loaded is not None
        server = loaded[1]
        yield server


def test_the_cases_are_all_that_is_allowed_to_remember():
    remembers = {name for name, row in ALGORITHMS.items() if "client memory" in row.traits}
    assert remembers == MEMORIES.keys()
    named = [set(case.split("+")) for case in CASES]
    for parts in (["scaffold", "topk"], ["feddyn", "int8"], ["scaffold", "flexlora"]):
        assert any({*parts} <= case for case in named)
    assert not any(case & {"median", "krum", "flora"} for case in named)


@pytest.mark.parametrize("name", CASES)
def test_the_server_remembers_the_mean_of_the_clients(name, tmp_path):
    algorithm = build(name)
    for seed, all_known in ((1, False), (2, True)):
        schedule = plans(seed)
        engine = Simulated(algorithm, schedule, all_known)
        for server in played(engine, algorithm, schedule, tmp_path):
            check(name, server, engine.states, engine.population())
        assert engine.known == set(CLIENTS)


def weighted_memory(played: Any, name: str) -> Adapter:
    """sum_k (n_k / n) of a memory over all clients; those never seen have zeros."""
    like = random_adapter("first")
    return weighted_mean(
        (played.clients[client].recall(name, like), RECORDS[client]) for client in CLIENTS
    )


@pytest.mark.parametrize("targets", ["", "fedsd+", "fedsdr+"])
@pytest.mark.parametrize("name", MEMORIES)
def test_whatever_is_learnt_from_the_server_remembers_the_mean(name, targets):
    memory = MEMORIES[name]
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


class HereDispatcher(RequestDispatcher):
    """A dispatcher whose clients are here."""

    def __init__(self, clients: Clients) -> None:
        self.here, self.roster = clients, dict.fromkeys(CLIENTS, UNSIGNED)

    def question(self, request: Request) -> Request:
        return request

    def ask(
        self, clients: Sequence[str], question: Request, seconds: float, counted: Mapping[str, int]
    ) -> Iterator[Answer | Absent]:
        for client in clients:
            place = (question.operation, "run", client, "own", question.round)
            if question.operation == "prepare":
                there = client not in self.here.plans[0].away
                weight = float(RECORDS[client])
                yield Answer(*place, weight=weight) if there else Absent(client, "it is away")
                continue
            answer = self.here.answer(client, question.shared, question.round)
            yield (
                answer
                if isinstance(answer, Absent)
                else Answer(*place, change=answer.update.change, weight=answer.update.weight)
            )


def remote_engine(clients: Clients, chosen: Recipe, folder: Path) -> RemoteEngine:
    method = Method("own", folder, chosen, build_algorithm(chosen))
    shape = AdapterShape(random_adapter("first"), None)  # type: ignore[arg-type]
    return RemoteEngine(HereDispatcher(clients), method, shape, silent_reporter())


@pytest.mark.parametrize("name", ["scaffold+rolora+topk", "feddyn+int8"])
@pytest.mark.parametrize("missing", [{"cleo"}, {"ben", "cleo"}, set()])
def test_who_misses_prepare_joins_when_it_first_answers(name, missing, tmp_path):
    """In a deployment, whose server may be restarted after any round."""
    chosen: Recipe = recipe(name)
    algorithm = build(name)
    schedule = [Plan(["anna", *{"ben"} - missing], missing, set()), *plans(3)[1:]]
    clients = Clients(algorithm, schedule)

    def engine() -> RemoteEngine:
        return remote_engine(clients, chosen, tmp_path)

    first = engine()
    first.deployment = first.deployment.model_copy(update={"min_clients": 1})
    first.prepare()
    known = {*CLIENTS} - missing
    assert first.population() == sum(RECORDS[client] for client in known)
    server = algorithm.init(random_adapter("first"))
    for number, plan in enumerate(schedule, start=1):
        each = engine()
        server, _ = run_round(algorithm, each, server, Round(number, 1), plan.asked, quorum=1)
        known |= {*plan.asked} - plan.away
        check(name, server, clients.states, sum(RECORDS[client] for client in known))
    assert known == {*CLIENTS}


def test_a_claim_of_another_weight_changes_no_population(tmp_path):
    """What a client first said holds, and is on disk before a round counts on it."""
    name = "scaffold"
    clients = Clients(build(name), plans(1))
    engine = remote_engine(clients, recipe(name), tmp_path)
    said = Answer("fit", "run", "ben", "own", 1, weight=3.0)
    assert isinstance(engine._participant(said), Participant)
    refused = engine._participant(replace(said, weight=1e9))
    assert isinstance(refused, Absent)
    assert "weighs 1e+09, and it was prepared for 3" in refused.reason
    again = remote_engine(clients, recipe(name), tmp_path)
    assert again.population() == engine.population() == 3


def test_without_a_memory_nothing_is_rescaled():
    like = random_adapter("first")
    state = ServerState(like, {"m": like}, population=1.0)
    for name in ALGORITHMS.keys() - MEMORIES.keys():
        assert build(name).rescaled(state, 0.5) is state
