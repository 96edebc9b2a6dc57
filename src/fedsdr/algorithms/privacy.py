"""Client-level differential privacy: each update is clipped, and Gaussian noise added.

McMahan et al. 2018 (arXiv 1710.06963), Algorithm 1. A client scales its whole change to norm C at
most. Nothing else that it sends depends on its records: its weight is 1, since the number of
records is private too and would set the sensitivity, and it reports no metrics. Gaussian noise
of standard deviation z C is added to

    sum_k dw_k    once a round, by the server              central
    dw_k          before it leaves the client              local_noise

`accounting` turns z into epsilon. What these transforms do not protect from: noise is as secret as
`Round.secret`, and floating-point noise is not the real-valued one of the theorem (Mironov 2012).
A codec wraps them and not they it: noise is added to the numbers, not to their encoding.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Options,
    Round,
    ServerState,
    Update,
    check_update,
)
from fedsdr.algorithms.robust.clipping import clip_to_norm
from fedsdr.core import seeds
from fedsdr.core.adapters import Adapter, WeightedSum, no_sum, resize_rank, zeros_like


class PrivacyOptions(Options):
    """`[privacy]` as algorithms need it. clip = inf or noise_multiplier = 0 protects nothing."""

    clip: Annotated[float, Field(gt=0)] = 1.0
    """C, the largest Euclidean norm of a client's change, in the units of the adapter."""
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """z, the noise's standard deviation in units of C."""

    @property
    def deviation(self) -> float:
        """The noise's standard deviation in each coordinate."""
        return self.noise_multiplier * self.clip if self.noise_multiplier else 0.0


def central_privacy(inner: Algorithm, options: PrivacyOptions) -> Algorithm:
    """Central differential privacy, with a trusted server: `inner` sees only a round's noisy mean.

    The server clips once more and weighs every client 1, whatever it claims. `inner` is given the
    noisy mean as one update, as heavy as there were clients: whatever it makes of that, be it
    linear or not, is as private. Memory does not grow with the number of clients.
    """

    def collect(fold: WeightedSum, update: Update) -> WeightedSum:
        return fold.plus(clip_to_norm(update.change, options.clip), 1.0)

    def finish(state: ServerState, fold: WeightedSum, round: Round) -> ServerState:
        noisy = fold._replace(total=add_noise(fold.total, options.deviation, round.secret))
        mean = Update(noisy.mean(like=inner.uploads(state, round)), fold.weight)
        return inner.finish(state, inner.add(inner.start(state, round), mean), round)

    return _bounded(inner, options)._replace(
        start=lambda state, round: no_sum(inner.uploads(state, round)),
        add=collect,
        finish=finish,
        ranks=frozenset(),
    )


def local_noise(inner: Algorithm, options: PrivacyOptions) -> Algorithm:
    """Local differential privacy, without a trusted server: each client adds noise to its update.

    The server does not clip: noise makes honest updates longer than C, by far where there are
    many coordinates.
    """
    bounded = _bounded(inner, options)

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        update, state = bounded.client(shared, state, fit, round)
        return Update(
            add_noise(update.change, options.deviation, round.secret), update.weight
        ), state

    return bounded._replace(client=client)


def _bounded(inner: Algorithm, options: PrivacyOptions) -> Algorithm:
    """`inner`, whose clients send a change of norm C at most and nothing else."""

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        update, state = inner.client(shared, state, fit, round)
        return Update(clip_to_norm(update.change, options.clip), weight=1.0), state

    return inner._replace(client=client)


def with_failures_hidden(
    inner: Algorithm, first: Adapter, note: Callable[[Exception], None]
) -> Algorithm:
    """`inner`, whose client half gives a change of zeros where it failed, and keeps its state.

    Whether training fails depends on the records, and noise does not hide it. first: an adapter of
    the client's model. note: called with the reason, which must stay at the client.
    """

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        like = inner.uploads(inner.init(first), round)
        try:
            update, after = inner.client(shared, state, fit, round)
            check_update("this one", update, like, inner.ranks)
        except Exception as error:  # whatever it is, the server is not to learn of it
            note(error)
            mine = like if state.rank is None else resize_rank(like, state.rank)
            return Update(zeros_like(mine), weight=1.0), state
        return update, after

    return inner._replace(client=client)


def add_noise(adapter: Adapter, deviation: float, secret: bytes) -> Adapter:
    """`adapter` + N(0, deviation^2) in every coordinate, drawn for each tensor by its name.

    secret: of this party and round; it suffices to remove the noise.
    """
    if not deviation:
        return adapter
    assert secret, "noise without a secret hides nothing"

    def noisy(key: str, tensor: torch.Tensor) -> torch.Tensor:
        draws = seeds.secret_gaussian(seeds.derive_secret(secret, "noise", key), tensor.shape)
        return (tensor.double() + draws.to(tensor.device) * deviation).to(tensor.dtype)

    return {key: noisy(key, tensor) for key, tensor in adapter.items()}
