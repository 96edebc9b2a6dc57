"""Messages arrive as they were sent, whatever the dtype, and only what can be read is sent."""

from dataclasses import replace

import pytest
import torch

from fedsdr.core.metrics import Mean
from fedsdr.deploy.protocol import messages as wire
from fedsdr.deploy.protocol.messages import (
    LONGEST,
    Answer,
    Request,
    WireError,
    decode_answer,
    decode_request,
    encode_message,
)
from fedsdr.deploy.protocol.signing import (
    UNSIGNED,
    new_key,
    open_sealed,
    read_private,
    seal_payload,
)

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
REQUEST = Request("fit", "run", "recipe", "anna", "fedsdr+flora", 3)
ANSWER = Answer(
    "fit", "run", "anna", "fedsdr", 3, weight=8.0, metrics={"loss/R": Mean(1.5, 2.0)},
    request="0" * 32,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 3), (0, 3), (2, 1, 2)], ids=str)
def test_tensors_arrive_bit_by_bit(dtype, shape):
    sent = (torch.rand(shape, dtype=torch.float64) * 100 - 50).to(dtype)
    found = decode_answer(encode_message(replace(ANSWER, change={"x": sent}))).change["x"]
    assert found.dtype == dtype
    assert found.shape == sent.shape
    assert found.view(torch.uint8).tolist() == sent.view(torch.uint8).tolist() if shape else True
    assert torch.equal(found.double(), sent.double())


def test_views_and_gradients_arrive_as_plain_tensors():
    weight = torch.arange(6.0, requires_grad=True)
    change = {"turned": weight.view(2, 3).T, "half": weight[:3], "rest": weight[3:]}
    change |= {"all": weight, "again": weight}
    found = decode_request(encode_message(replace(REQUEST, shared=change))).shared
    for key, tensor in change.items():
        assert torch.equal(found[key], tensor)
        assert not found[key].requires_grad


def test_everything_else_arrives_too():
    request = replace(REQUEST, operation="hello", agreed={"distill.prompt": 'say "ü"\n\t{x}\0'})
    assert decode_request(encode_message(request)) == request
    told = {"model": "abc ü", "fedsdr": "0.1.0"}
    answer = replace(ANSWER, facts=told, refused="für x")
    assert decode_answer(encode_message(answer)) == answer
    assert isinstance(decode_answer(encode_message(answer)).metrics["loss/R"], Mean)


@pytest.mark.parametrize("payload", [b"", b"x", b"\0" * 70_000], ids=len)
def test_a_payload_of_any_length_is_sealed_and_opened(payload, tmp_path):
    new_key(tmp_path / "key")
    key = read_private(tmp_path / "key")
    assert open_sealed(seal_payload(payload, key), key.public_key()) == payload
    assert open_sealed(seal_payload(payload, UNSIGNED), UNSIGNED) == payload


def test_a_request_is_no_answer():
    with pytest.raises(WireError, match="wrong header"):
        decode_answer(encode_message(REQUEST))
    with pytest.raises(WireError, match="wrong header"):
        decode_request(encode_message(ANSWER))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"client": "../anna"}, "client"),
        ({"run": "a/b"}, "run"),
        ({"round": -1}, "round"),
        ({"round": 10**6}, "round"),
        ({"operation": "shell"}, "operation"),
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"metrics": {"loss": Mean(float("inf"), 1.0)}}, "metrics.loss"),
        ({"metrics": {"x" * 201: Mean(1.0, 1.0)}}, "metrics"),
        ({"facts": {"model": "x" * 401}}, "facts.model"),
        ({"facts": {"model": "\x1b[2J"}}, "facts.model"),
        ({"refused": "x" * (LONGEST + 1)}, "refused"),
        ({"refused": "two\nlines"}, "refused"),
        ({"refused": "\u202egnp.exe"}, "refused"),
    ],
)
def test_what_could_not_be_read_is_not_sent(changes, place):
    with pytest.raises(WireError, match=f"cannot be sent: {place}"):
        encode_message(replace(ANSWER, **changes))


def test_a_weight_below_0_that_another_program_has_sent_is_refused():
    sent = encode_message(replace(ANSWER, weight=80.0)).replace(b":80.0", b":-8.0")
    with pytest.raises(WireError, match="wrong header: weight = -8"):
        decode_answer(sent)


def test_too_long_a_message_is_not_even_parsed(monkeypatch):
    data = encode_message(REQUEST)
    monkeypatch.setattr(wire, "MOST", len(data))
    assert decode_request(data) == REQUEST
    with pytest.raises(WireError, match=f"{len(data) + 1} bytes is larger than {len(data)}"):
        decode_request(data + b"\0")
