"""Updates, numbers and messages that are wrong are refused by name, and the round goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean
from fedsdr.deploy.protocol import messages as wire
from fedsdr.deploy.protocol.messages import (
    Answer,
    decode_answer,
    encode_message,
)
from fedsdr.deploy.protocol.signing import (
    UNSIGNED,
    seal_payload,
    unverified_payload,
)
from support import toy_clients
from support.message_lines import Loopback, loopback
from support.signed_federation import SOON, Federation, bits, rows


def changed(key: str, tensor: torch.Tensor) -> Callable[[Answer], Answer]:
    return lambda answer: replace(answer, change={**answer.change, key: tensor})


def first(answer: Answer) -> str:
    return min(answer.change)


def every(edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Answer], Answer]:
    return lambda answer: replace(answer, change={k: edit(t) for k, t in answer.change.items()})


def one(edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Answer], Answer]:
    return lambda a: replace(a, change={**a.change, first(a): edit(a.change[first(a)])})


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


HOSTILE: dict[str, tuple[Callable[[Answer], Answer], str]] = {
    "nan": (one(filled(float("nan"))), "NaN or infinite"),
    "infinity": (one(filled(float("inf"))), "NaN or infinite"),
    "shape": (one(lambda t: t[:1]), "has shape"),
    "dtype": (one(lambda t: t.double()), "float64, expected"),
    "integers": (one(lambda t: t.to(torch.int8)), "int8, expected"),
    "missing": (lambda a: replace(a, change=dict(list(a.change.items())[1:])), "missing keys"),
    "extra": (changed("model.embed_tokens.weight", torch.zeros(2)), "unexpected keys"),
    "nothing": (lambda a: replace(a, change={}), "missing keys"),
    "giant": (every(filled(1e30)), "max_norm"),
    "weight 0": (lambda a: replace(a, weight=0.0), "weighs 0, and it was prepared for"),
    "weight": (lambda a: replace(a, weight=a.weight + 1), "and it was prepared for"),
    "undeclared": (lambda a: replace(a, metrics={"records": Mean(1.0, 1.0)}), "may not leave"),
    "other run": (lambda a: replace(a, run="another"), "answered for run 'another'"),
    "last round": (lambda a: replace(a, round=a.round - 1), "answered for round"),
    "other method": (lambda a: replace(a, method="fedavg+median"), "answered for method"),
    "other operation": (lambda a: replace(a, operation="evaluate"), "answered for operation"),
    "other request": (lambda a: replace(a, request="0" * 32), "answered another request"),
    "other client": (lambda a: replace(a, client="anna"), "answered for client 'anna'"),
    "nobody": (lambda a: replace(a, client="dora"), "answered for client 'dora'"),
    "refusal": (lambda a: replace(a, change={}, refused="no time"), "no time"),
}


def corrupt(
    line: Loopback, edit: Callable[[Answer], bytes | None], client: str = "cleo"
) -> Loopback:
    """The line, on which a client's answers in rounds are what `edit` makes of them."""
    node = 100 + toy_clients.CLIENTS.index(client)

    def lost(at: int, asked: bytes, reply: bytes) -> bytes | None:
        answer = decode_answer(unverified_payload(reply))
        return edit(answer) if at == node and answer.operation == "fit" else reply

    line.lost = lost
    return line


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One federation for all that is hostile, and the bits of it without cleo."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        federation = Federation(folder)
        sides = federation.clients()
        keys = federation.keys
        line = corrupt(
            loopback(sides),
            lambda a: seal_payload(
                encode_message(replace(a, change={}, refused="no")), keys["cleo"]
            ),
        )
        without = federation.serve(line, "without")
        yield federation, sides, bits(without)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_update_is_refused_and_the_round_goes_on(shared, kind):
    federation, sides, without = shared
    edit, reason = HOSTILE[kind]
    line = corrupt(
        loopback(sides), lambda a: seal_payload(encode_message(edit(a)), federation.keys["cleo"])
    )
    out = federation.serve(line, f"out-{kind}".replace(" ", "-"), **SOON)
    for row in rows(out):
        assert row["clients"] == ["anna", "ben"]
        assert row["absent"].keys() == {"cleo"}
        assert reason in row["absent"]["cleo"]
    assert bits(out) == without


def claiming(answer: Answer, **head: Any) -> bytes:
    """The answer's bytes with other words in its header, whatever `encode` would say to them."""
    data = encode_message(answer)
    end = 8 + int.from_bytes(data[:8], "little")
    outer = json.loads(data[8:end])
    outer["__metadata__"]["fedsdr"] = json.dumps(json.loads(outer["__metadata__"]["fedsdr"]) | head)
    text = json.dumps(outer).encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "giant weight": ({"weight": 1e308}, "weight = 1e+308"),
    "giant sum": ({"metrics": {"loss/rectify": [1e308, 1.0]}}, "metrics.loss/rectify.0 = 1e+308"),
    "sum over nothing": ({"metrics": {"loss/rectify": [1.0, 1e-300]}}, "metrics.loss/rectify"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_no_number_of_one_client_makes_a_total_infinite(shared, kind):
    federation, sides, without = shared
    head, reason = CLAIMS[kind]
    key = federation.keys["cleo"]
    line = corrupt(loopback(sides), lambda answer: seal_payload(claiming(answer, **head), key))
    out = federation.serve(line, f"out-{kind}".replace(" ", "-"))
    for row in rows(out):
        assert reason in row["absent"]["cleo"]
    assert bits(out) == without


def test_a_client_that_may_not_tell_its_records_weighs_one(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    federation = Federation(tmp_path, federation={"sample_counts": False})
    heavy = lambda a: seal_payload(encode_message(replace(a, weight=1e9)), federation.keys["cleo"])  # noqa: E731
    out = federation.serve(corrupt(loopback(federation.clients()), heavy))
    for row in rows(out):
        assert row["absent"]["cleo"] == "a count may not leave in an answer to 'fit'"


def test_the_largest_norm_is_that_of_what_was_encoded(tmp_path, monkeypatch):
    """An update of int8 carries scales; what they stand for is up to 127 times as large."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    federation = Federation(
        tmp_path, federation={"compression": "int8"}, deployment={"max_norm": 100.0}
    )

    def blown_up(answer: Answer) -> bytes:
        scales = {k: torch.ones_like(t) for k, t in answer.change.items() if k.endswith("/scale")}
        full = {
            k: torch.full_like(t, 127) for k, t in answer.change.items() if t.dtype == torch.int8
        }
        return seal_payload(
            encode_message(replace(answer, change=full | scales)), federation.keys["cleo"]
        )

    out = federation.serve(corrupt(loopback(federation.clients()), blown_up))
    for row in rows(out):
        assert "longer than deployment.max_norm = 100" in row["absent"]["cleo"]


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "not a message of this protocol"),
    "garbage": (lambda data: bytes(range(256)) * 9, "not a message of this protocol"),
    "truncated": (lambda data: data[:-9], "signature|safetensors"),
    "headless": (lambda data: data[:200], "signature|safetensors"),
    "bit": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "the signature is not of whom"),
    "unsigned": (
        lambda data: seal_payload(unverified_payload(data), UNSIGNED),
        "the signature is not of whom",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_message_is_refused_and_the_round_goes_on(shared, kind):
    federation, sides, without = shared
    edit, reason = BROKEN[kind]
    key = federation.keys["cleo"]
    line = corrupt(loopback(sides), lambda answer: edit(seal_payload(encode_message(answer), key)))
    out = federation.serve(line, f"out-{kind}", **SOON)
    assert rows(out)
    for row in rows(out):
        assert any(each in row["absent"]["cleo"] for each in reason.split("|"))
    assert bits(out) == without


def test_a_giant_message_is_refused(shared, monkeypatch):
    federation, sides, without = shared
    big = lambda a: replace(a, change={**a.change, "x": torch.zeros(10**6)})  # noqa: E731
    line = corrupt(
        loopback(sides), lambda a: seal_payload(encode_message(big(a)), federation.keys["cleo"])
    )
    monkeypatch.setattr(wire, "MOST", 10**6)
    out = federation.serve(line, "out-large")
    assert all("is larger than 1000000" in row["absent"]["cleo"] for row in rows(out))
    assert bits(out) == without


def test_with_too_few_left_the_run_stops_and_can_go_on(federation):
    sides = federation.clients()
    keys = federation.keys

    def refuse(a):
        return seal_payload(encode_message(replace(a, change={}, refused="no time")), keys["cleo"])

    with pytest.raises(UserError, match=r"round 1 needs .* 3 of 3 clients, and 1 gave .* no time"):
        federation.serve(corrupt(loopback(sides), refuse), **{"deployment.min_clients": 3})
    out = federation.serve(loopback(sides), **{"deployment.min_clients": 3})
    assert bits(out) == bits(federation.serve(loopback(federation.clients("others")), "clean"))
