"""The round loop with nothing around it, and what tests compare of its outcome."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fitted,
    Schedule,
    ServerState,
    Setup,
    Stage,
    Update,
    check_update,
)
from fedsdr.core.adapters import Adapter, Private, unwrap_private
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.methods import named_recipe
from fedsdr.recipe.sections.local import Local
from fedsdr.recipe.sections.model import Model
from fedsdr.recipe.sections.recipe import Recipe
from support.toy_clients import CLIENTS, RECORDS, ToyClient, random_adapter, secret_round

ROUNDS = 3
SCHEDULE = Schedule(3, 0.1)
POPULATION = sum(RECORDS.values())
SETUP = Setup(SCHEDULE)
LOCAL = Local(
    rectify_steps=3, rectify_lr=0.1, smooth_steps=2, smooth_lr=0.3,
    smoothing_state="keep", smoothing_context="base", rectify_alone=0.5,
)  # fmt: skip


def recipe(name: str, **sections: Any) -> Recipe:
    """The recipe of a method by name (`fedsdr.recipe.methods`), for toy clients."""
    sections = {"options": {}, "local": LOCAL, **sections}
    sections["options"] = {"krum": {"malicious": 0}, **sections["options"]}  # of three clients
    return named_recipe(name, Recipe(model=Model(path="lab"), **sections))


def build(name: str, **sections: Any) -> Algorithm:
    return build_algorithm(recipe(name, **sections))


class Played(NamedTuple):
    """What a few rounds left behind, in order of rounds and clients."""

    server: ServerState
    clients: dict[str, ClientState]
    updates: list[Update]
    stages: list[Stage]
    fits: list[Fitted]


Store = Callable[[Any], Any]  # what is kept between rounds passes through it


def play(
    algorithm: Algorithm,
    cohort: Sequence[str] = CLIENTS,
    rounds: int = ROUNDS,
    dtype: torch.dtype = torch.float64,
    keep: Store = lambda state: state,
    cohorts: Callable[[int], Sequence[str]] | None = None,
    ranks: dict[str, int] | None = None,
) -> Played:
    """Rounds of toy clients; `cohorts` says who takes part in each, if not all of `cohort`."""
    server = algorithm.init(random_adapter("first", dtype=dtype))
    clients = {name: ClientState(rank=(ranks or {}).get(name)) for name in cohort}
    played = Played(server, clients, [], [], [])
    for number in range(1, rounds + 1):
        server = step(
            algorithm, server, played, number, cohorts(number) if cohorts else cohort, dtype
        )
        server = keep(server)
        for name in clients:
            clients[name] = keep(clients[name])
    return played._replace(server=server)


def step(
    algorithm: Algorithm,
    server: ServerState,
    played: Played,
    number: int,
    cohort: Sequence[str],
    dtype: torch.dtype = torch.float64,
) -> ServerState:
    """One round; `played` is filled in."""
    round = secret_round(number, 1000 + number, POPULATION)
    shared = algorithm.broadcast(server)
    fold = algorithm.start(server, round)
    for name in cohort:
        toy = ToyClient(name, dtype)
        own = secret_round(number, 2000 + 10 * number + CLIENTS.index(name))
        update, played.clients[name] = algorithm.client(shared, played.clients[name], toy, own)
        check_update(name, update, algorithm.uploads(server, round), algorithm.ranks)
        fold = algorithm.add(fold, update)
        played.updates.append(update)
        played.stages.extend(toy.stages)
        played.fits.extend(toy.fits)
    return algorithm.finish(server, fold, round)


def aggregate(
    algorithm: Algorithm,
    state: ServerState,
    updates: Sequence[tuple[Adapter, float]],
    number: int = 1,
) -> ServerState:
    """The server half alone: one round of given changes and weights."""
    round = secret_round(number, 7, POPULATION)
    fold = algorithm.start(state, round)
    for change, weight in updates:
        fold = algorithm.add(fold, Update(change, weight))
    return algorithm.finish(state, fold, round)


def furthest(a: Adapter, b: Adapter) -> float:
    """The largest difference between two adapters of the same keys."""
    assert a.keys() == b.keys()
    return max((float((a[key] - b[key]).abs().max()) for key in a), default=0.0)


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors inside adapters, states, updates and folds, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Private):
        return tensors(unwrap_private(value))
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


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The weight B A of each layer, formed."""
    paths = [key.removesuffix(".lora_A.weight") for key in adapter if key.endswith("_A.weight")]
    return {p: adapter[f"{p}.lora_B.weight"] @ adapter[f"{p}.lora_A.weight"] for p in paths}
