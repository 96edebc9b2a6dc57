"""Rounds of toy clients, client by client: what each was asked to train, and what came of it."""

from typing import NamedTuple

import pytest

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fitted,
    Round,
    Stage,
    Update,
)
from fedsdr.core.adapters import (
    Adapter,
)
from support.toy_clients import CLIENTS, ToyClient, random_adapter
from support.toy_rounds import ROUNDS

TARGETS = ("", "fedsdr+")  # one stream, and two; what is learnt from is the contract's
every_target = pytest.mark.parametrize("targets", TARGETS)
LEARNT = {"": "raw", "fedsd+": "distilled", "fedsdr+": "raw"}  # by R and by personal adapters
TWO_STREAM = "fedsdr+"


class Turn(NamedTuple):
    """One client's part in one round: what it was asked to train, and what came of it."""

    client: str
    sent: Adapter
    stages: dict[str, Stage]
    fits: dict[str, Fitted]
    update: Update
    state: ClientState  # afterwards


def turns(algorithm: Algorithm, rounds: int = ROUNDS, late: str = "") -> list[list[Turn]]:
    """Rounds of toy clients, by round; `late` is not in the first of them."""
    server = algorithm.init(random_adapter("first"))
    states = {name: ClientState() for name in CLIENTS}
    played = []
    for number in range(1, rounds + 1):
        round = Round(number, number)
        sent, fold = algorithm.broadcast(server), algorithm.start(server, round)
        of_round = []
        for client in CLIENTS:
            if number == 1 and client == late:
                continue
            toy = ToyClient(client)
            update, states[client] = algorithm.client(sent, states[client], toy, round)
            fold = algorithm.add(fold, update)
            names = [stage.name for stage in toy.stages]
            assert len({*names}) == len(names)
            stages = dict(zip(names, toy.stages, strict=True))
            fits = dict(zip(names, toy.fits, strict=True))
            of_round.append(Turn(client, sent, stages, fits, update, states[client]))
        server = algorithm.finish(server, fold, round)
        played.append(of_round)
    return played


def by_client(played: list[list[Turn]]) -> list[list[Turn]]:
    """Each client's turns, in order of rounds."""
    every = [turn for of_round in played for turn in of_round]
    return [[turn for turn in every if turn.client == client] for client in CLIENTS]


def stage_names(targets: str, *personal: str) -> list[str]:
    return [*(["smooth"] if targets == TWO_STREAM else []), "rectify", *personal]
