"""An engine of toy clients with real stores, which reports every point that it passes."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fedsdr.algorithms.contract import (
    Algorithm,
    Round,
    Schedule,
    ServerState,
    Setup,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.participation import RoundOptions
from fedsdr.algorithms.two_stream import Smoothing, two_stream
from fedsdr.core.adapters import Adapter, norm
from fedsdr.core.metrics import Mean, Metrics
from fedsdr.core.progress import silent_reporter
from fedsdr.federation.rounds import Participant, RoundHooks, run_rounds
from fedsdr.recipe.methods import Method
from fedsdr.training.store import ClientStore
from support.toy_clients import RECORDS, ToyClient, random_adapter
from support.toy_rounds import recipe

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
    method = Method("toy", folder, recipe("fedavg"), algorithm or fedsdr())
    state = run_rounds(method, engine, first, options, silent_reporter(), RoundHooks(evaluate))
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
