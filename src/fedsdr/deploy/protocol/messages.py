"""What goes over the wire: requests of the server and answers of clients, as bytes.

A message is one safetensors file whose header carries the rest as strict JSON, so nothing that
arrives can run code, and every dtype (bfloat16 too) arrives as it was sent. What it is carried by,
a Unix socket or Flower, is not its business.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load, save

from fedsdr.core.adapters import Adapter
from fedsdr.core.metrics import Mean
from fedsdr.deploy.protocol.wire import WireError, check_wire_name

VERSION: Final = 3
HEADER: Final = "fedsdr"  # the entry of the safetensors header
MOST: Final = 8 * 2**30  # bytes of a message
LONGEST: Final = 2000  # characters of a refusal
DIMENSIONS: Final = 8  # of a tensor; arithmetic on one of hundreds fails in torch
# What weights and sums of metrics may be, so that no client's number makes a total infinite.
MOST_RECORDS: Final = 1e12
MOST_SUM: Final = 1e15
LEAST_WEIGHT: Final = 1e-6  # of a metric that has one
ANYONE: Final = "-"  # the client of a hello, which asks who is there
METADATA: Final = "__metadata__"  # the name that safetensors keeps for itself


def _check_asked(name: str) -> str:
    return name if name == ANYONE else check_wire_name(name)


Operation = Literal["hello", "prepare", "fit", "evaluate", "finish"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._+-]*$", max_length=200)]
AskedClient = Annotated[str, AfterValidator(_check_asked)]
RoundNumber = Annotated[int, Field(ge=0, lt=10**6)]
Drawn = Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")]  # at random, or nothing
Weight = Annotated[float, Field(ge=0, le=MOST_RECORDS, allow_inf_nan=False)]
Sum = Annotated[float, Field(ge=-MOST_SUM, le=MOST_SUM, allow_inf_nan=False)]


def printable_text(text: str) -> str:
    """A text without escape codes and line breaks: what others write ends up on terminals."""
    return "".join(character if character.isprintable() else " " for character in text)


def _check_printable(text: str) -> str:
    if text != printable_text(text):
        raise ValueError("it has characters that cannot be printed")
    return text


WireText = Annotated[str, AfterValidator(_check_printable)]


def _check_divisible(pair: tuple[float, float]) -> tuple[float, float]:
    if 0 < pair[1] < LEAST_WEIGHT:
        raise ValueError(f"the weight of a mean is 0, or {LEAST_WEIGHT} at least")
    return pair


Pair = Annotated[tuple[Sum, Weight], AfterValidator(_check_divisible)]  # of a Mean


@dataclass(frozen=True)
class Request:
    """What the server asks of one client.

    run: the server's name of this run; began: when it began, in milliseconds since 1970: of two
    runs the later one is the newer. recipe: digest of what all must agree on. method: which of
    the recipe's methods. round: from 1; 0 outside of rounds. shared: the algorithm's broadcast.
    counted: the last round in which this client's update was aggregated, 0 for none. journal: of
    the client, in which it is to be entered (`fedsdr.deploy.client.journal`). agreed: in a hello,
    what the digest is of, key by key. nonce: of a hello, drawn for it alone.
    """

    operation: Operation
    run: str
    recipe: str
    client: str
    method: str = "-"
    round: int = 0
    shared: Adapter = field(default_factory=dict)
    counted: int = 0
    agreed: Mapping[str, str] = field(default_factory=dict)
    began: int = 0
    journal: str = ""
    nonce: str = ""


@dataclass(frozen=True)
class Answer:
    """What a client sends: nothing that is not in here can leave it.

    change, weight, metrics: of an `Update`, or of an evaluation. facts: a hello's short texts.
    refused: why the request was not carried out; then there is nothing else. request: digest of the
    request's bytes, so that an answer is of use for no other one.
    """

    operation: Operation
    run: str
    client: str
    method: str = "-"
    round: int = 0
    change: Adapter = field(default_factory=dict)
    weight: float = 0.0
    metrics: Mapping[str, Mean] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    request: str = ""


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[3]
    operation: Operation
    run: Name
    client: AskedClient
    method: Name
    round: RoundNumber


class _RequestHead(_Head):
    kind: Literal["request"]
    recipe: Name
    counted: RoundNumber
    agreed: dict[str, str]
    began: Annotated[int, Field(ge=0, lt=2**53)]
    journal: Drawn
    nonce: Drawn


class _AnswerHead(_Head):
    kind: Literal["answer"]
    weight: Weight
    metrics: dict[Annotated[WireText, Field(max_length=200)], Pair]
    facts: dict[
        Annotated[WireText, Field(max_length=40)], Annotated[WireText, Field(max_length=400)]
    ]
    refused: Annotated[WireText, Field(max_length=LONGEST)]
    request: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


def encode_message(message: Request | Answer) -> bytes:
    """The bytes of a message. Raises `WireError` for one that could not be read again."""
    head: dict[str, Any] = {"version": VERSION, **vars(message)}
    if isinstance(message, Request):
        tensors = head.pop("shared")
        text = _head(_RequestHead, {"kind": "request", **head, "agreed": dict(message.agreed)})
    else:
        tensors = head.pop("change")
        metrics = {name: tuple(mean) for name, mean in message.metrics.items()}
        more = {"kind": "answer", "metrics": metrics, "facts": dict(message.facts)}
        text = _head(_AnswerHead, {**head, **more})
    _check_tensors(tensors)
    plain = {  # copies, for safetensors refuses tensors that share memory
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    return save(plain, {HEADER: text})


def _head(model: type[_Head], values: Mapping[str, Any]) -> str:
    try:
        return model.model_validate(values).model_dump_json()
    except ValidationError as error:
        raise WireError(f"this message cannot be sent: {_first_fault(error)}") from error


def _check_tensors(tensors: Adapter) -> None:
    """Raise `WireError` for tensors that no adapter has."""
    for name, tensor in tensors.items():
        if name == METADATA or tensor.dim() > DIMENSIONS or tensor.is_complex():
            raise WireError(
                f"{name!r:.60} ({tensor.dim()} dimensions of {tensor.dtype}) is no tensor of an "
                "adapter"
            )


def decode_request(data: bytes) -> Request:
    """Raises `WireError` for anything that is not a whole, well-formed request."""
    head, tensors = _decode(data, _RequestHead)
    values = head.model_dump(exclude={"version", "kind"})
    return Request(shared=tensors, **values)


def decode_answer(data: bytes) -> Answer:
    """Raises `WireError` for anything that is not a whole, well-formed answer."""
    head, tensors = _decode(data, _AnswerHead)
    values = head.model_dump(exclude={"version", "kind", "metrics"})
    metrics = {name: Mean(*pair) for name, pair in head.metrics.items()}
    return Answer(change=tensors, metrics=metrics, **values)


H = TypeVar("H", bound=_Head)


def _decode(data: bytes, model: type[H]) -> tuple[H, Adapter]:
    if len(data) > MOST:
        raise WireError(f"a message of {len(data)} bytes is larger than {MOST}")
    try:
        tensors: dict[str, torch.Tensor] = load(data)
    except Exception as error:  # safetensors raises its own type from Rust, KeyError for a dtype
        raise WireError(f"a message that is no safetensors file: {error!s:.200}") from error
    _check_tensors(tensors)
    try:
        text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return model.model_validate_json(text[METADATA][HEADER]), tensors
    except ValidationError as error:
        raise WireError(f"a message with a wrong header: {_first_fault(error)}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError("a safetensors file without our header") from error


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place} = {first['input']!r:.60}: {first['msg']}"
