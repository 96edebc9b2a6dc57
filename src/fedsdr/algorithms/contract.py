"""What an algorithm is: a few pure functions, its client half and its server half together.

An algorithm sees adapters (dicts of tensors) and `fit`, the client's local trainer. It imports
nothing of models, data or engines, keeps no state of its own, and never mutates what it is
given; engines decide where its halves run.

    server                                        client k
    state = init(R^0)
    broadcast(state)  -------- Adapter --------->  client(R^t, state_k, fit)
    fold = add(fold, update) <-- Update ---------  ... and the new state_k stays there
    state = finish(state, fold)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from fedsdr.adapters import Adapter, Private, all_finite, check_same_keys
from fedsdr.metrics import Mean, Metrics

Targets = Literal["raw", "distilled"]


@dataclass(frozen=True)
class Schedule:
    """How long one stage of local training lasts: optimiser steps, and the learning rate."""

    steps: int
    lr: float


@dataclass(frozen=True)
class Stage:
    """A request to the local trainer: one stream learns, the other may keep it company.

    name: the purpose of its random draws ("rectify", "smooth").
    trains: "shared" or "private"; the other adapter, if given, is frozen.
    shared: R, or None to leave it out of the forward pass.
    private: S, or None to leave it out; a private stream to be trained starts fresh from None.
    targets: what responses to learn from; None leaves it to the transform around the algorithm.
    alone: share of the batches in which only the trained stream is in the forward pass.
    """

    name: str
    trains: Literal["shared", "private"]
    schedule: Schedule
    shared: Adapter | None = None
    private: Private | None = None
    targets: Targets = "raw"
    alone: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """What local training gives back: the adapter that was trained, and how it went.

    before: a private adapter as the stage found it (a fresh one, where none was given).
    examples: n_k, the number of the client's raw records.
    """

    examples: int
    loss: Mean
    shared: Adapter = field(default_factory=dict)
    private: Private | None = None
    before: Private | None = None


class Fit(Protocol):
    """The client's local trainer."""

    def __call__(self, stage: Stage) -> Fitted: ...


@dataclass(frozen=True)
class ClientState:
    """What a client keeps from round to round. It never leaves the client."""

    private: Mapping[str, Private] = field(default_factory=dict)


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
    """What the server keeps: the global adapter, and an algorithm's own tensors (moments, say)."""

    adapter: Adapter
    memory: Mapping[str, Adapter] = field(default_factory=dict)


class Personal(NamedTuple):
    """The adapters of a client's own model: W0 + shared + private, either of them optional."""

    shared: Adapter | None
    private: Private | None


class Algorithm(NamedTuple):
    """One federated algorithm. Compose by wrapping: `two_stream(fedavg(...), ...)`."""

    init: Callable[[Adapter], ServerState]
    broadcast: Callable[[ServerState], Adapter]
    client: Callable[[Adapter, ClientState, Fit], tuple[Update, ClientState]]
    start: Callable[[ServerState], Any]
    add: Callable[[Any, Update], Any]
    finish: Callable[[ServerState, Any], ServerState]
    uploads: Callable[[ServerState], Adapter]
    personal: Callable[[Adapter, ClientState], Personal]


def check_update(client: str, update: Update, like: Adapter) -> None:
    """Refuse an update that cannot be aggregated; the error names the client and the reason."""
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
