"""Krum and multi-Krum: only the updates that lie closest to their neighbours count.

Blanchard et al. 2017 (arXiv 1703.02757), Sec. 4: of K updates, f of which may be hostile, each
scores the sum of its squared distances to its K - f - 2 nearest others, and the m lowest scores
are averaged. The paper's guarantee needs K > 2 f + 2. Distances are those of whole updates, all
tensors together. Records do not weigh: a hostile client would claim many.

The updates of a round are kept until all are there: memory grows with the number of clients.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated

from pydantic import Field

from fedsdr.algorithms.contract import Algorithm, Options, Round, ServerState, Update
from fedsdr.core.adapters import Adapter, norm, subtract, weighted_mean
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean


class Krum(Options):
    """keep = 1 is Krum, more is multi-Krum."""

    malicious: Annotated[int, Field(ge=0)] = 1
    """f, the number of hostile clients to tolerate in a round, which needs at least f + 3."""
    keep: Annotated[int, Field(ge=1)] = 1
    """m, the number of updates that are averaged (all, if fewer arrive)."""


def krum(inner: Algorithm, options: Krum) -> Algorithm:
    """`inner` on the mean of the updates with the lowest scores, as heavy as there were updates.

    Metric `robust/kept`: the share of updates that were averaged. A round of fewer than
    `malicious` + 3 updates raises `UserError`.
    """

    def finish(state: ServerState, fold: Sequence[Update], round: Round) -> ServerState:
        begun = inner.start(state, round)
        if not fold:
            return inner.finish(state, begun, round)
        best = rank_by_score(fold, options.malicious)[: options.keep]
        change = weighted_mean((update.change, 1.0) for update in best)
        robust = Update(change, len(fold))
        moved = inner.finish(state, inner.add(begun, robust), round)
        share = {"robust/kept": Mean(len(best), len(fold))}
        return replace(moved, metrics={**moved.metrics, **share})

    return inner._replace(
        start=lambda state, round: (),
        add=lambda fold, update: (*fold, update),
        finish=finish,
        ranks=frozenset(),
    )


def rank_by_score(updates: Sequence[Update], malicious: int) -> list[Update]:
    """The updates, the lowest score first.

    Two that are nearest to each other often score the same; then the shorter comes first, so
    that the order of arrival decides between equal scores and norms alone.
    """
    changes = [update.change for update in updates]
    found = krum_scores(changes, malicious)
    order = sorted(range(len(updates)), key=lambda i: (found[i], norm(changes[i])))
    return [updates[i] for i in order]


def krum_scores(changes: Sequence[Adapter], malicious: int) -> list[float]:
    """Krum's score of each: squared distances to its K - f - 2 nearest others, summed."""
    count = len(changes)
    neighbours = count - malicious - 2
    if neighbours < 1:
        raise UserError(
            f"Krum with malicious = {malicious} needs at least {malicious + 3} clients in a round, "
            f"and there are {count}: set malicious to {max(count - 3, 0)} or less, or let more "
            "clients take part"
            if count > 2
            else f"Krum needs at least 3 clients in a round, and there are {count}: let more "
            "clients take part, or choose another aggregation"
        )
    away: list[list[float]] = [[] for _ in changes]
    for i, j in combinations(range(count), 2):
        distance = norm(subtract(changes[i], changes[j])) ** 2
        away[i].append(distance)
        away[j].append(distance)
    return [sum(sorted(each)[:neighbours]) for each in away]  # sorted: the same sum in any order
