"""Rounds of toy clients as seen from outside, and the weights that they give, in numpy.

Toy clients of unequal weight take part in turns. What a client's model would add to the base is
formed from what it trained, beside whatever frozen part it was sent; the ideal of a round is the
mean of these, and so is known without any of the library's arithmetic.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fitted,
    NoOptions,
    ServerState,
    Stage,
    Update,
)
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, FOLDED, Adapter, unwrap_private
from fedsdr.recipe.sections.evaluate import Evaluate
from support.toy_clients import CLIENTS, RECORDS, SHAPES, random_adapter
from support.toy_rounds import SETUP, Played, build, step

COHORTS = (("anna", "cleo"), CLIENTS, ("cleo", "ben"), ("ben",), CLIENTS)
PATHS = ("layers.0.x", "layers.1.y")
ALL = set(SHAPES)
ONLY = {f: {key for key in SHAPES if f".lora_{f}." in key} for f in "AB"}

EXACT = ("ffa", "rolora", "flora", "fedex")
GLOBAL = ("fedavg", *EXACT, "flexlora", "fedrot")  # "fedavg" alone averages factors


class Seen(NamedTuple):
    """One round, seen from outside; updates, stages and fits by client."""

    number: int
    before: ServerState
    after: ServerState
    sent: Adapter
    updates: dict[str, Update]
    stages: dict[str, Stage]
    fits: dict[str, Fitted]
    clients: dict[str, ClientState]


def rounds(
    algorithm: Algorithm,
    ranks: dict[str, int] | None = None,
    cohorts: Sequence[Sequence[str]] = COHORTS,
    first: Adapter | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[Seen]:
    server = algorithm.init(first or random_adapter("first", dtype=dtype))
    clients = {name: ClientState(rank=(ranks or {}).get(name)) for name in CLIENTS}
    seen = []
    for number, cohort in enumerate(cohorts, start=1):
        played = Played(server, clients, [], [], [])
        after = step(algorithm, server, played, number, cohort, dtype)
        by_client = (
            dict(zip(cohort, each, strict=True))
            for each in (played.updates, played.stages, played.fits)
        )
        sent = algorithm.broadcast(server)
        seen.append(Seen(number, server, after, sent, *by_client, clients=dict(clients)))
        server = after
    return seen


def with_error(name: str) -> Algorithm:
    return build(name, evaluate=Evaluate(aggregation_error=True))


# --- The same in numpy

Formed = dict[str, np.ndarray]


def formed(a: Adapter) -> Formed:
    """B A of each layer, and of its frozen part where there is one."""

    def weight(prefix: str) -> np.ndarray:
        return a[prefix + B_SUFFIX].double().numpy() @ a[prefix + A_SUFFIX].double().numpy()

    return {
        path: weight(path) + (weight(FOLDED + path) if FOLDED + path + A_SUFFIX in a else 0)
        for path in PATHS
    }


def mean(parts: Sequence[tuple[Formed, float]]) -> Formed:
    total = sum(weight for _, weight in parts)
    return {path: sum(w * part[path] for part, w in parts) / total for path in PATHS}


def ideal(seen: Seen) -> Formed:
    """The mean of the models that the clients have after their training."""
    parts = []
    for name, fitted in seen.fits.items():
        frozen = {k: t for k, t in (seen.stages[name].shared or {}).items() if "/" in k}
        parts.append((formed({**unwrap_private(fitted.after), **frozen}), RECORDS[name]))
    return mean(parts)


def best(weight: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def distance(a: Formed, b: Formed) -> float:
    return math.sqrt(sum(float(((a[path] - b[path]) ** 2).sum()) for path in PATHS))


def close(a: Formed, b: Formed, tolerance: float = 1e-10) -> None:
    for path in PATHS:
        np.testing.assert_allclose(a[path], b[path], rtol=0, atol=tolerance)


def orthogonals(rank: int) -> list[torch.Tensor]:
    """Random rotations and reflections, and every flip of signs."""
    draw = torch.Generator().manual_seed(rank)
    randoms = torch.randn(30, rank, rank, generator=draw, dtype=torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * rank)
    return [*torch.linalg.qr(randoms)[0], *map(torch.diag, signs.reshape(-1, rank))]


RANKS = {"anna": 1}


def several(make: Callable[..., Algorithm]) -> Algorithm:
    return make(fedavg(SETUP), NoOptions(), ranks=[1])
