"""Client sampling and evaluation schedule: functions of seed and round."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedsdr.core import seeds


@dataclass(frozen=True)
class RoundOptions:
    """Options of the round loop.

    rounds: how many. participation: share of the clients in each round.
    every: rounds between evaluations; 0 means only before the first and after the last.
    seed: of the sampling of clients; public. secret: the source of the server's noise.
    late: share of the clients that join after round `late_round`.
    quorum: the updates that a round needs, at most one for each client sampled; None: all of them.
    """

    seed: int
    rounds: int
    participation: float
    every: int
    secret: bytes = b""
    late: float = 0.0
    late_round: int = 0
    quorum: int | None = None


def cohort_size(clients: int, share: float) -> int:
    """max(1, ceil(share x K)): how many of K clients take part in a round."""
    # 0.07 x 100 is a little more than 7 in floating point, but 7 are meant.
    return max(1, math.ceil(share * clients - 1e-9))


def present_clients(
    clients: Sequence[str], late: float, late_round: int, round: int
) -> Sequence[str]:
    """The clients that can take part in a round; the last ones in order may join late.

    late: share of the clients that join after round `late_round`: max(1, floor(late x K)) of K.
    """
    if not late or round > late_round:
        return clients
    # 0.29 x 100 is a little less than 29 in floating point, but 29 are meant.
    return clients[: -max(1, math.floor(late * len(clients) + 1e-9))]


def sample_clients(clients: Sequence[str], share: float, seed: int, round: int) -> list[str]:
    """A round's clients, without replacement, a function of seed and round alone."""
    draw = seeds.seeded_generator(seed, "cohort", round)
    order = torch.randperm(len(clients), generator=draw).tolist()
    chosen = order[: cohort_size(len(clients), share)]
    return [clients[i] for i in sorted(chosen)]


def cohort_of(clients: Sequence[str], options: RoundOptions, round: int) -> list[str]:
    """The clients of a round, sampled from those that can take part."""
    there = present_clients(clients, options.late, options.late_round, round)
    return sample_clients(there, options.participation, options.seed, round)


def is_due(round: int, rounds: int, every: int) -> bool:
    """Whether there is an evaluation after a round; 0 is before the first."""
    return round in (0, rounds) or (every > 0 and round % every == 0)
