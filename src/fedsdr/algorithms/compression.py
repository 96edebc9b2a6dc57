"""Smaller uploads: the client encodes what it sends, the server decodes it on arrival.

What encoding loses can be kept by the client and sent with its next change: error feedback
(Seide et al. 2014, Sec. 3; Karimireddy et al. 2019, arXiv 1901.09847, Algorithm 2). With x the
change of a round, e the residual, zero at first, and C encoding and decoding:

    p = x + e,    send C(p),    e' = p - C(p)

So the sum of what arrives is that of the changes, but for the last residual. That supposes that a
tensor's coordinates mean the same from round to round. Further tensors (SCAFFOLD's
control variates) need no residual: they are differences to what the server has, so that the next
one contains what this one lost.

A codec wraps everything else: whatever is inside sees decoded updates.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any, Final, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    NoOptions,
    Options,
    Round,
    Update,
)
from fedsdr.core.adapters import Adapter, add, plain_factors, subtract

RESIDUAL: Final = "residual"
SCALE, INDEX, VALUE = "/scale", "/index", "/value"
LEVELS: Final = 127  # of int8 at either side of zero


class Codec(NamedTuple):
    """decode: given what was encoded, and tensors of the shapes and dtypes to be decoded to."""

    encode: Callable[[Adapter], Adapter]
    decode: Callable[[Adapter, Adapter], Adapter]


class TopK(Options):
    """How sparse updates are."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The share of each tensor's entries that is sent: those of largest magnitude, at least one."""


class DecodedFold(NamedTuple):
    """inner: the wrapped algorithm's fold; like: shapes and dtypes to be decoded to."""

    inner: Any
    like: Adapter


def with_compression(inner: Algorithm, codec: Codec, feedback: bool) -> Algorithm:
    """`inner`, whose clients send `codec.encode` of their changes.

    feedback: whether a client keeps what encoding lost, in `ClientState.memory`.
    """

    def client(
        shared: Adapter, state: ClientState, fit: Fit, round: Round
    ) -> tuple[Update, ClientState]:
        update, after = inner.client(shared, state, fit, round)
        wanted = update.change
        if feedback:
            owed = state.recall(RESIDUAL, like=plain_factors(wanted))
            wanted = {**wanted, **add(plain_factors(wanted), owed)}
        encoded = codec.encode(wanted)
        decoded = codec.decode(encoded, wanted)
        after = inner.seen(state, after, decoded)
        if feedback:
            after = after.remember(
                RESIDUAL, subtract(plain_factors(wanted), plain_factors(decoded))
            )
        return replace(update, change=encoded), after

    def collect(fold: DecodedFold, update: Update) -> DecodedFold:
        decoded = replace(update, change=codec.decode(update.change, fold.like))
        return DecodedFold(inner.add(fold.inner, decoded), fold.like)

    return inner._replace(
        client=client,
        start=lambda state, round: DecodedFold(
            inner.start(state, round), inner.uploads(state, round)
        ),
        add=collect,
        finish=lambda state, fold, round: inner.finish(state, fold.inner, round),
        uploads=lambda state, round: codec.encode(inner.uploads(state, round)),
        ranks=frozenset(),
    )


def fp16(inner: Algorithm, options: NoOptions) -> Algorithm:
    """Half the bytes of float32. No feedback: a relative error of 2^-11 is below the noise of
    training, and not worth a residual of the adapter's size at each client."""
    return with_compression(inner, half_codec(), feedback=False)


def int8(inner: Algorithm, options: NoOptions) -> Algorithm:
    """About a quarter of the bytes of float32, with error feedback."""
    return with_compression(inner, rows_of_int8(), feedback=True)


def topk(inner: Algorithm, options: TopK) -> Algorithm:
    """Two numbers for each entry that is sent, with error feedback."""
    return with_compression(inner, top_k(options), feedback=True)


def half_codec() -> Codec:
    """float16. Finite values beyond its range become the largest, +-65504; an infinite one stays
    infinite, for the server to refuse."""
    most = torch.finfo(torch.float16).max

    def encode(tensor: Tensor) -> Tensor:
        return torch.where(tensor.isfinite(), tensor.clamp(-most, most), tensor).half()

    return Codec(
        encode=lambda adapter: {key: encode(adapter[key]) for key in adapter},
        decode=lambda encoded, like: {key: encoded[key].to(like[key].dtype) for key in like},
    )


def rows_of_int8() -> Codec:
    """int8 with one scale a row (the last dimension), max|x| / 127: off by half a scale at most.

    Integers are under the tensor's name, the scales (float32, last dimension 1) under
    NAME/scale.
    """

    def encode(adapter: Adapter) -> Adapter:
        encoded: Adapter = {}
        for key, tensor in adapter.items():
            scale = (tensor.abs().amax(dim=-1, keepdim=True) / LEVELS).float()
            divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
            # The scale's own rounding can put the largest entry past the last level.
            levels = (tensor / divisor).round().clamp(-LEVELS, LEVELS)
            encoded |= {key: levels.to(torch.int8), key + SCALE: scale}
        return encoded

    def decode(encoded: Adapter, like: Adapter) -> Adapter:
        return {
            key: encoded[key].to(like[key].dtype) * encoded[key + SCALE].to(like[key].dtype)
            for key in like
        }

    return Codec(encode, decode)


def top_k(options: TopK) -> Codec:
    """The entries of largest magnitude of each tensor, the others zero (Aji and Heafield 2017,
    arXiv 1704.05021).

    NAME/index: int32, positions in the flattened tensor, ascending; NAME/value: the entries, in
    the tensor's dtype. Decoding other positions raises `ValueError`: they come from outside.
    """
    share = Fraction(str(options.share))  # as written: ceil(0.07 * 100) would be 8

    def encode(adapter: Adapter) -> Adapter:
        encoded: Adapter = {}
        for key, tensor in adapter.items():
            flat = tensor.flatten()
            count = max(1, math.ceil(share * flat.numel()))
            index = flat.abs().topk(count, sorted=False).indices.sort().values
            encoded |= {key + INDEX: index.int(), key + VALUE: flat[index]}
        return encoded

    def decode(encoded: Adapter, like: Adapter) -> Adapter:
        return {
            key: _scattered(key, encoded[key + INDEX].long(), encoded[key + VALUE], like[key])
            for key in like
        }

    return Codec(encode, decode)


def _scattered(key: str, index: Tensor, value: Tensor, like: Tensor) -> Tensor:
    """`value` at the flat positions `index` of a tensor of zeros like `like`."""
    end = like.numel()
    if bool(((index < 0) | (index >= end)).any()) or bool((index.diff() <= 0).any()):
        raise ValueError(
            f"update cannot be decoded: positions of {key} must be ascending, from 0 to {end - 1}"
        )
    flat = torch.zeros_like(like).flatten()
    return flat.scatter(0, index, value).reshape(like.shape)
