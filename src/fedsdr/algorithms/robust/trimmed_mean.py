"""Coordinate-wise trimmed mean: the extremes of each coordinate are left out of its mean.

Yin et al. 2018 (arXiv 1803.01498), Definition 2, with beta the share dropped at either end.
Records do not weigh: a hostile client would claim many.

The updates of a round are kept until all are there: memory grows with the number of clients.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsdr.algorithms.contract import Algorithm, Options, Round, ServerState, Update
from fedsdr.core.adapters import Adapter, check_same_keys


class TrimmedMean(Options):
    """How much is trimmed."""

    share: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """beta: of K updates floor(beta K) are dropped at each end, so none if K < 1 / beta."""


def trimmed_mean(inner: Algorithm, options: TrimmedMean) -> Algorithm:
    """`inner` on the coordinate-wise trimmed mean of a round's updates."""
    # As it is written in decimals: 0.29 of 100 are 29, though 0.29 * 100 < 29 in floats.
    share = Fraction(str(options.share))
    return of_sorted(inner, cut=lambda count: math.floor(share * count))


def of_sorted(inner: Algorithm, cut: Callable[[int], int]) -> Algorithm:
    """`inner` on one update a round: each coordinate's mean without the cut(K) smallest and the
    cut(K) largest of its K values. It is as heavy as there were updates."""

    def finish(state: ServerState, fold: Sequence[Update], round: Round) -> ServerState:
        begun = inner.start(state, round)
        if not fold:
            return inner.finish(state, begun, round)
        change = mean_of_middle([update.change for update in fold], cut(len(fold)))
        return inner.finish(state, inner.add(begun, Update(change, len(fold))), round)

    return inner._replace(
        start=lambda state, round: (),
        add=lambda fold, update: (*fold, update),
        finish=finish,
        ranks=frozenset(),
    )


def mean_of_middle(adapters: Sequence[Adapter], cut: int) -> Adapter:
    """Coordinate by coordinate, the mean of all but the `cut` smallest and largest values."""
    for adapter in adapters:
        check_same_keys(adapters[0], adapter)

    def mean(tensors: list[Tensor]) -> Tensor:
        ordered = torch.stack(tensors).sort(dim=0).values
        kept = ordered[cut : len(tensors) - cut]
        return kept.double().mean(dim=0).to(tensors[0].dtype)

    return {key: mean([adapter[key] for adapter in adapters]) for key in adapters[0]}
