"""Whatever bytes arrive: a message, or a `WireError` in words. A client's files do not change."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fedsdr.core import files
from fedsdr.core.metrics import Mean
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client.journal import JOURNAL
from fedsdr.deploy.client.operations import ClientSide
from fedsdr.deploy.client.relay import ask_trainer
from fedsdr.deploy.client.trainer import listen_socket, serve_requests
from fedsdr.deploy.protocol.agreement import agreed_keys, agreement_digest
from fedsdr.deploy.protocol.egress import LOG
from fedsdr.deploy.protocol.messages import (
    DIMENSIONS,
    HEADER,
    METADATA,
    Answer,
    Request,
    WireError,
    decode_answer,
    decode_request,
    encode_message,
)
from fedsdr.deploy.protocol.signing import (
    MAGIC,
    UNSIGNED,
    new_key,
    open_sealed,
    read_private,
    seal_payload,
    unverified_payload,
)
from fedsdr.deploy.server.engine import adapter_shape
from fedsdr.recipe.load import load_recipe
from support import tiny_recipe, toy_clients
from support.fuzzing import JUNK, fuzzed, mutated, state
from support.message_lines import client_sides

CLIENT = toy_clients.CLIENTS[0]
TENSORS = {
    "layers.0.x.lora_A.weight": torch.ones(2, 3),
    "control/layers.0.x.lora_B.weight": torch.ones(4, 2, dtype=torch.bfloat16),
    "index": torch.arange(3),
}
FIT = Answer("fit", "run", CLIENT, "fedsdr", 3, request="0" * 32)
MESSAGES = [
    encode_message(Request("hello", "run", "recipe", "-", agreed={"seed": "0", "lora.rank": "2"})),
    encode_message(Request("fit", "run", "recipe", CLIENT, "fedsdr", 3, TENSORS)),
    encode_message(replace(FIT, change=TENSORS, weight=8.0, metrics={"loss/R": Mean(1.5, 2.0)})),
    encode_message(replace(FIT, operation="hello", facts={"model": "abc", "fedsdr": "0.1.0"})),
    encode_message(replace(FIT, refused="for a reason")),
]


def readable(data: bytes) -> None:
    """Both readers take the data, or refuse them in words."""
    for read in (decode_request, decode_answer):
        try:
            message = read(data)
        except WireError as error:
            assert 0 < len(str(error).strip()) < 500  # noqa: PT017 (either outcome is right)
            continue
        assert read(encode_message(message)).run == message.run  # what was read can be sent


@fuzzed
@given(st.binary(max_size=80) | mutated(st.sampled_from(MESSAGES)))
def test_bytes_are_messages_or_refused(data):
    readable(data)


# --- Headers that lie

SIZES = st.integers(0, 40) | st.sampled_from(
    [0, -1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, "1"]
)
DTYPES = st.sampled_from(
    "BOOL U8 I8 F8_E4M3 F8_E8M0 F4 F6_E2M3 U16 F16 BF16 F32 I64 F64 C64 float32 X".split()
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": DTYPES,
        "shape": st.lists(SIZES, max_size=4) | st.integers(9, 300).map(lambda n: [1] * n),
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | st.just([0, 4]),
    },
    optional={"more": st.none()},
)
HEAD: dict[str, Any] = {
    "version": 3, "kind": "request", "operation": "fit", "run": "run", "client": CLIENT,
    "method": "fedsdr", "round": 1, "counted": 0, "recipe": "recipe", "agreed": {},
    "began": 0, "journal": "", "nonce": "",
}  # fmt: skip
CHANGED_HEADS = st.dictionaries(st.sampled_from([*HEAD, "more"]), JUNK, max_size=3)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A safetensors file of our form whose header claims what it likes."""
    head = json.dumps(HEAD | draw(CHANGED_HEADS))
    if draw(st.booleans()):  # a key twice
        head = head[:-1] + ', "client": "ben"}'
    entries = draw(st.lists(st.tuples(st.text(max_size=4), ENTRIES | JUNK), max_size=3))
    pairs = [(METADATA, {HEADER: head}), *entries]
    if draw(st.booleans()):  # a tensor twice
        pairs.append(pairs[-1])
    text = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs)
    header = f"{{{text}}}".encode()
    length = len(header) if draw(st.booleans()) else draw(st.integers(0, 2**64 - 1))
    return length.to_bytes(8, "little") + header + draw(st.binary(max_size=16))


@fuzzed
@given(headers())
def test_headers_that_claim_anything_are_refused_or_read(data):
    readable(data)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a\\b", "a\0b", ".", "..", "", "a\n"])
@pytest.mark.parametrize("key", ["run", "client", "method", "recipe"])
def test_no_name_in_a_message_leads_out_of_a_folder(key, name):
    text = json.dumps({METADATA: {HEADER: json.dumps(HEAD | {key: name})}}).encode()
    with pytest.raises(WireError, match=f"wrong header: {key} = "):
        decode_request(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize(
    "tensor", [torch.zeros([1] * (DIMENSIONS + 1)), torch.zeros(1, dtype=torch.complex64)]
)
def test_tensors_that_no_adapter_has_are_refused_in_both_directions(tensor):
    with pytest.raises(WireError, match="no tensor of an adapter"):
        encode_message(Request("fit", "run", "recipe", CLIENT, shared={"x": tensor}))
    shape, dtype = list(tensor.shape), {torch.float32: "F32", torch.complex64: "C64"}[tensor.dtype]
    size = tensor.numel() * tensor.element_size()
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({METADATA: {HEADER: json.dumps(HEAD)}, "x": entry}).encode()
    with pytest.raises(WireError, match="no tensor of an adapter"):
        decode_request(len(text).to_bytes(8, "little") + text + bytes(size))


# --- A client and its socket


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def client(place: Path) -> ClientSide:
    """A client that has begun a run: there are files that a wrong request could change."""
    for who in ("server", "other", *toy_clients.CLIENTS):
        new_key(place / "keys" / who)
    keys = {name: read_private(place / "keys" / name) for name in toy_clients.CLIENTS}
    server = read_private(place / "keys" / "server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(place / "cache"))
        recipe_file = tiny_recipe.write_recipe(place)
        sides = client_sides(recipe_file, place / "sides", keys, server.public_key())
        sides[CLIENT](requests(place)[1])
        assert "answer-000000-prepare" in str([*(place / "sides").rglob("answer-*")])
    return sides[CLIENT]


@pytest.fixture(scope="module")
def sealed(client: ClientSide, place: Path) -> list[bytes]:
    return requests(place)


def requests(place: Path) -> list[bytes]:
    """What the server asks, sealed by its key (signatures are random: never the same bytes)."""
    recipe = load_recipe(place / "recipe.toml")
    first = adapter_shape(recipe, silent_reporter()).first
    key, digest = read_private(place / "keys" / "server"), agreement_digest(recipe)
    hello = Request("hello", "run", digest, "-", agreed=agreed_keys(recipe), nonce="0" * 32)
    journal = files.read_json(place / "sides" / CLIENT / JOURNAL)["name"]
    operations = [
        Request("prepare", "run", digest, CLIENT, "fedsdr"),
        Request("fit", "run", digest, CLIENT, "fedsdr", 1, first),
        Request("finish", "run", digest, CLIENT, "fedsdr", recipe.federation.rounds, first),
    ]
    asked = [replace(each, journal=journal) for each in operations]
    return [seal_payload(encode_message(each), key) for each in [hello, *asked]]


def refused(client: ClientSide, data: bytes, place: Path) -> None:
    """The client does nothing but note that it was asked."""
    before, noted = state(place / "sides", without=LOG), client.audit.path.read_bytes()
    with pytest.raises(WireError):
        client(data)
    client.audit.write_rest()  # where a refusal of this kind was noted a moment ago
    assert state(place / "sides", without=LOG) == before
    [line] = client.audit.path.read_bytes().removeprefix(noted).splitlines()
    assert json.loads(line)["refused"]


@fuzzed
@given(data=st.data())
def test_a_request_that_was_changed_changes_no_file(client, place, sealed, data):
    sent = data.draw(mutated(st.sampled_from(sealed)))
    assume(sent not in sealed)
    refused(client, sent, place)


@pytest.mark.parametrize("which", range(4))
def test_a_request_that_another_has_signed_or_nobody_changes_no_file(client, place, sealed, which):
    payload = unverified_payload(sealed[which])
    for key in (UNSIGNED, read_private(place / "keys" / "other"), client.key):
        refused(client, seal_payload(payload, key), place)
    other = sealed[which - 1]
    start = len(MAGIC) + 2
    end = start + int.from_bytes(other[len(MAGIC) : start], "big")
    refused(client, other[:end] + payload, place)  # signed, but something else


def test_the_requests_themselves_are_answered(client, sealed):
    for data in sealed:
        answer = decode_answer(open_sealed(client(data), client.key.public_key()))
        assert not answer.refused


@pytest.fixture
def trainer(client: ClientSide, tmp_path: Path) -> Iterator[Path]:
    """The socket of a trainer that runs."""
    path = tmp_path / "t.sock"
    server = listen_socket(path)

    def run() -> None:
        with suppress(OSError):  # of accept, once the socket is shut down
            serve_requests(server, client)

    thread = threading.Thread(target=run)
    thread.start()
    yield path
    assert thread.is_alive()
    server.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()
    server.close()


FRAMES = st.tuples(
    st.sampled_from([0, 1, 5, 2**20, 2**33, 2**33 + 1, 2**63, 2**64 - 1]).map(
        lambda n: n.to_bytes(8, "big")
    )
    | st.binary(max_size=8),
    st.binary(max_size=40),
).map(b"".join)


@fuzzed
@given(frame=FRAMES)
def test_a_trainer_survives_broken_frames(trainer, frame):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(str(trainer))
        with suppress(ConnectionError):  # it may have hung up on what it has read so far
            line.sendall(frame)


def test_a_trainer_answers_after_broken_frames(trainer, sealed):
    for frame in (b"", b"\0", b"\xff" * 8, bytes(8), (5).to_bytes(8, "big") + b"ab"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(str(trainer))
            line.sendall(frame)
    assert ask_trainer(trainer, sealed[0], patience=5).startswith(MAGIC)
