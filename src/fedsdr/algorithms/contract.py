"""The contract of an algorithm: a few pure functions, its client half and its server half.

An algorithm sees adapters (dicts of tensors) and `fit`, the client's local trainer. It imports
nothing of models, data or engines, keeps no state of its own, and never mutates what it is
given; engines decide where its halves run.

    server                                        client k
    state = init(R^0)
    broadcast(state)  -------- Adapter --------->  client(shared, state_k, fit, round)
    fold = add(fold, update) <-- Update ---------  ... and the new state_k stays there
    state = finish(state, fold, round)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedsdr.core.adapters import (
    A_SUFFIX,
    B_SUFFIX,
    Adapter,
    Private,
    all_finite,
    check_same_keys,
    layer_paths,
    plain_factors,
    resize_rank,
    strip_prefix,
)
from fedsdr.core.metrics import Mean, Metrics

Targets = Literal["raw", "distilled", "mixed"]
Factors = Literal["A", "B", "both"]


class Options(BaseModel):
    """An algorithm's options, `[options.NAME]` of a recipe. The string below a key documents it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NoOptions(Options):
    """Of algorithms without options."""


class Round(NamedTuple):
    """One round, as a client half or the server half sees it.

    number: from 1.
    seed: of this half's own random draws in this round (a restarted adapter, say).
    population: for the server half only: the sum of the weights n_k of all clients known when the
        round's updates are in, whether or not they took part in it.
    secret: 32 bytes from which this half draws the noise of differential privacy; empty without.
        A client's and the server's are independent.
    """

    number: int
    seed: int
    population: float = 1.0
    secret: bytes = b""


@dataclass(frozen=True)
class Schedule:
    """How long one stage of local training lasts: optimiser steps, and the learning rate."""

    steps: int
    lr: float


@dataclass(frozen=True)
class Setup:
    """What every algorithm is built from: each client's local training in a round."""

    schedule: Schedule


@dataclass(frozen=True)
class Pull:
    """The gradient of (strength / 2) |w - towards|^2, added to the loss's; keys that `towards`
    does not have are not pulled."""

    towards: Adapter
    strength: float


class Loss(NamedTuple):
    """What a stage minimises at each response token.

    kind: "cross_entropy" of the token itself; "soft", the divergence of the model's distribution
        from that of W0 with the record's own response in its prompt; "on_policy", the same at the
        tokens of responses that the model samples; or "consolidation", the divergence of R without
        S from W0 + R + S, R as it is before the first step.
    divergence: "forward" is KL(teacher || student), "reverse" KL(student || teacher).
    weight: of the divergence; that of cross entropy is 1 - weight. agreeing: whether it is 0 where
        the token is not the teacher's likeliest.
    """

    kind: Literal["cross_entropy", "soft", "on_policy", "consolidation"] = "cross_entropy"
    divergence: Literal["forward", "reverse"] = "forward"
    weight: float = 1.0
    agreeing: bool = False


CROSS_ENTROPY: Final = Loss()


@dataclass(frozen=True)
class Stage:
    """A request to the local trainer: one stream learns, others may be frozen in the forward pass.

    name: the purpose of its random draws ("rectify", "smooth").
    trains: "R" or "S"; every other given stream is in the forward pass, frozen.
    shared: R's tensors as the server sent them, or None; those under the prefix
        `fedsdr.core.adapters.FOLDED` are a frozen part of R, from earlier rounds.
    own: R's tensors that this client does not share. R is in the forward pass where `shared` or
        `own` is given; tensors of a trained R that are in neither start fresh, as the client's own.
    private: S, or None to leave it out; an S to be trained starts fresh from None.
    fade: factor on the weight B A of an S to be trained, before its first step.
    targets: what responses to learn from. loss: what is learnt of them.
    alone: share of the batches in which S is left out.
    factors: the factors of R to be trained; the other is frozen.
    pull, shift: corrections of the gradient g of R before it is clipped: g + pull + shift.
    mean_gradient: whether `Fitted.gradient` is asked for.
    """

    name: str
    trains: Literal["R", "S"]
    schedule: Schedule
    shared: Adapter | None = None
    own: Private | None = None
    private: Private | None = None
    fade: float = 1.0
    targets: Targets = "raw"
    loss: Loss = CROSS_ENTROPY
    alone: float = 0.0
    factors: Factors = "both"
    pull: Pull | None = None
    shift: Adapter | None = None
    mean_gradient: bool = False


@dataclass(frozen=True)
class Fitted:
    """The result of local training.

    examples: n_k, the number of the client's raw records.
    before, after: the whole trained stream.
    shared: the trained values of those tensors of R that were in the stage's `shared`.
    own: the other tensors of R, which are not sent.
    gradient: the mean over steps of the loss's gradient with respect to `shared`, uncorrected
        and unclipped (zero for a frozen factor), where the stage asked for it.
    """

    examples: int
    loss: Mean
    before: Private
    after: Private
    shared: Adapter = field(default_factory=dict)
    own: Private | None = None
    gradient: Adapter = field(default_factory=dict)


class Fit(Protocol):
    """The client's local trainer."""

    def __call__(self, stage: Stage) -> Fitted: ...


@dataclass(frozen=True)
class ClientState:
    """A client's state from round to round. It never leaves the client.

    private: adapters, by name. memory: an algorithm's own tensors (control variates, say).
    rank: of this client's adapters, where it is smaller than the federation's.
    """

    private: Mapping[str, Private] = field(default_factory=dict)
    memory: Mapping[str, Adapter] = field(default_factory=dict)
    rank: int | None = None

    def keep(self, name: str, private: Private) -> "ClientState":
        """This state with one private adapter added or replaced."""
        return replace(self, private={**self.private, name: private})

    def recall(self, name: str, like: Adapter) -> Adapter:
        """The tensors of one memory under the names of `like`, zeros where there are none yet."""
        memory = self.memory.get(name, {})
        return {key: memory.get(key, torch.zeros_like(like[key])) for key in like}

    def remember(self, name: str, adapter: Adapter) -> "ClientState":
        """This state with tensors of one memory added or replaced, key by key."""
        memory = {**self.memory.get(name, {}), **adapter}
        return replace(self, memory={**self.memory, name: memory})


@dataclass(frozen=True)
class Update:
    """All that a client sends: a change of shared tensors, its weight n_k, and some means.

    Raises TypeError for anything but plain tensors, a private adapter above all.
    """

    change: Adapter
    weight: float
    metrics: Metrics = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.change, dict):
            raise TypeError(f"an update carries a dict of tensors, not {self.change!r}")
        for key, tensor in self.change.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"an update carries tensors, but {key} is {tensor!r}")
        for name, mean in self.metrics.items():
            if not isinstance(mean, Mean) or not all(isinstance(x, int | float) for x in mean):
                raise TypeError(f"an update's metrics are means of numbers, but {name} is {mean!r}")


@dataclass(frozen=True)
class ServerState:
    """The server's state: the global adapter, and an algorithm's own tensors (moments, say).

    metrics: of the last round's aggregation, for the log.
    population: that of the last round (`Round.population`), 0 before the first. The round loop
        sets it, algorithms need not carry it over.
    """

    adapter: Adapter
    memory: Mapping[str, Adapter] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    population: float = 0.0


class Personal(NamedTuple):
    """The adapters of a client's own model: W0 + R + S, each of them optional.

    R is `shared`, completed (or, where `shared` is None, given) by the client's `own` tensors.
    """

    shared: Adapter | None
    own: Private | None = None
    private: Private | None = None


def _unchanged(state: ServerState, factor: float) -> ServerState:
    return state


def _as_left(before: ClientState, after: ClientState, change: Adapter) -> ClientState:
    return after


class Algorithm(NamedTuple):
    """One federated algorithm. Compose by wrapping: `two_stream(fedavg(...), ...)`.

    broadcast: what every client is sent. deployed: the global model's adapter; empty where
    clients do not share a whole model. uploads: tensors of the keys, shapes and dtypes that a
    round's updates must have; ranks: other ranks than theirs that updates may have.

    rescaled: the server's state with its means over all clients (not only a round's) multiplied by
    a factor: the old sum of all clients' weights over the new one, when clients have joined.
    seen: (before, after, change) -> the client's state after a round in which the server receives
    `change` instead of the one that `client` returned with `after`. A transform that alters a
    change (lossy compression, say) must call it, so that client and server remember the same.
    later: prefixes of further adapters, of any rank, that a broadcast and a deployed adapter may
    hold after the first round.
    """

    init: Callable[[Adapter], ServerState]
    broadcast: Callable[[ServerState], Adapter]
    deployed: Callable[[ServerState], Adapter]
    client: Callable[[Adapter, ClientState, Fit, Round], tuple[Update, ClientState]]
    start: Callable[[ServerState, Round], Any]
    add: Callable[[Any, Update], Any]
    finish: Callable[[ServerState, Any, Round], ServerState]
    uploads: Callable[[ServerState, Round], Adapter]
    personal: Callable[[Adapter, ClientState], Personal]
    ranks: frozenset[int] = frozenset()
    rescaled: Callable[[ServerState, float], ServerState] = _unchanged
    seen: Callable[[ClientState, ClientState, Adapter], ClientState] = _as_left
    later: frozenset[str] = frozenset()


def check_broadcast(sent: Adapter, like: Adapter, later: frozenset[str] = frozenset()) -> None:
    """Raise `ValueError` unless `sent` can be a broadcast (or deployed adapter) of an algorithm.

    like: its broadcast before the first round. later: `Algorithm.later`.
    """
    grown = {key for key in sent.keys() - like.keys() if key.startswith(tuple(later))}
    same = {key: tensor for key, tensor in sent.items() if key not in grown}
    check_same_keys(like, same, who="what the server sent")
    for prefix in later:
        part = strip_prefix({key: sent[key] for key in grown}, prefix)
        if part:
            _check_grown(part, plain_factors(like))
    for key, tensor in sent.items():
        expected = like.get(key, next(iter(like.values()))).dtype
        if tensor.dtype != expected:
            raise ValueError(f"what the server sent: {key} is {tensor.dtype}, expected {expected}")
    if not all_finite(sent):
        raise ValueError("what the server sent has NaN or infinite values")


def _check_grown(part: Adapter, like: Adapter) -> None:
    """Check an adapter for the layers of `like`, whose layers may have any possible rank."""
    if part.keys() != like.keys():
        raise ValueError("what the server sent: its frozen part is not one of this model's layers")
    for path in layer_paths(part):
        a, b = part[path + A_SUFFIX], part[path + B_SUFFIX]
        inputs, outputs = like[path + A_SUFFIX].shape[1], like[path + B_SUFFIX].shape[0]
        rank = a.shape[0] if a.dim() else 0
        fits = (a.shape, b.shape) == ((rank, inputs), (outputs, rank))
        if not fits or not 1 <= rank <= min(inputs, outputs):
            raise ValueError(
                f"what the server sent: the frozen part of {path} has the shapes {tuple(a.shape)} "
                f"and {tuple(b.shape)}, and the layer has {inputs} inputs and {outputs} outputs"
            )


def check_update(
    client: str, update: Update, like: Adapter, ranks: frozenset[int] = frozenset()
) -> None:
    """Raise `ValueError`, naming the client and the reason, for an update that cannot be
    aggregated.

    like: tensors of the keys, shapes and dtypes expected. ranks: smaller ranks allowed instead.
    """
    for rank in ranks:
        smaller = resize_rank(like, rank)
        if all(update.change.get(key, like[key]).shape == t.shape for key, t in smaller.items()):
            like = smaller
    check_same_keys(like, update.change, who=f"update of client {client!r}")
    for key, tensor in update.change.items():
        if tensor.dtype != like[key].dtype:
            raise ValueError(
                f"update of client {client!r}: {key} is {tensor.dtype}, expected {like[key].dtype}"
            )
    if not all_finite(update.change):
        raise ValueError(f"update of client {client!r} has NaN or infinite values")
    if not 0 < update.weight < float("inf"):
        raise ValueError(
            f"update of client {client!r} has weight {update.weight}: "
            "expected its number of records"
        )
