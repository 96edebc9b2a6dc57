"""Turning the base model into the global one, a client's own, or back: which streams hold what."""

from collections.abc import Mapping

from fedsdr.algorithms.contract import Personal
from fedsdr.core import seeds
from fedsdr.core.adapters import (
    FOLDED,
    Adapter,
    fresh_adapter,
    plain_factors,
    strip_prefix,
    unwrap_private,
)
from fedsdr.model.lora import Stream, TwoStreamModel


def first_adapter(model: TwoStreamModel, seed: int) -> Adapter:
    """R^0 of a run: A random, B zero, so that W0 + R^0 is the base model."""
    return fresh_adapter(model.blank(), seeds.seeded_generator(seed, "first adapter"))


def install_model(model: TwoStreamModel, personal: Personal) -> None:
    """Make `model` the global model (`private` and `own` None), a client's own, or the base model
    (`shared` None, too).

    Tensors that R lacks are zero, as in a fresh R: a client that never took part has no part of
    its own.
    """
    r = rectification_adapter(personal)
    install_streams(
        model,
        {
            Stream.RECTIFY: {**model.blank(), **r} if r else {},
            Stream.SMOOTH: unwrap_private(personal.private),
            Stream.FOLDED: strip_prefix(personal.shared or {}, FOLDED),
        },
    )


def install_streams(model: TwoStreamModel, adapters: Mapping[Stream, Adapter]) -> None:
    """Load these adapters and switch every other stream off, one with an empty adapter too."""
    active = [stream for stream, adapter in adapters.items() if adapter]
    for stream in active:
        model.load(stream, adapters[stream])
    model.activate(*active)


def rectification_adapter(personal: Personal) -> Adapter:
    """R of a model: what is shared, completed by the client's own part."""
    return {**plain_factors(personal.shared or {}), **unwrap_private(personal.own)}
