"""Every answer is bound to one question, every question to one client and one moment."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedsdr.core.errors import UserError
from fedsdr.deploy.client.operations import ClientSide
from fedsdr.deploy.protocol.agreement import agreement_digest
from fedsdr.deploy.protocol.messages import (
    Answer,
    Request,
    WireError,
    decode_answer,
    decode_request,
    encode_message,
)
from fedsdr.deploy.protocol.signing import (
    UNSIGNED,
    seal_payload,
    unverified_payload,
)
from fedsdr.federation import rounds
from fedsdr.model.install import first_adapter
from support import toy_clients
from support.message_lines import Loopback, loopback
from support.signed_federation import CHECKPOINT, Federation, ServerDeath, bits, rows


def relaying(asked: Callable[[bytes], bytes], rubbish: Callable[[bytes], bytes]) -> Any:
    """A node without a key, which passes greetings on to a client, and its own words for others."""

    def node(data: bytes) -> bytes:
        request = decode_request(unverified_payload(data))
        return asked(data) if request.operation == "hello" else rubbish(data)

    return node


def test_an_old_greetings_answer_takes_no_place(federation):
    """Anna's signed answer to any greeting that was ever hers, brought by a node of nobody's."""
    sides = federation.clients()
    first = loopback(sides)
    federation.serve(first, "first")
    old = [answer for _, answer in first.traffic[100]]
    assert decode_answer(unverified_payload(old[0])).operation == "hello"
    line = Loopback({7: lambda data: old[0], **loopback(sides).up})
    out = federation.serve(line, "second")
    assert [row["clients"] for row in rows(out)] == [[*toy_clients.CLIENTS]] * 3
    asked = [decode_request(unverified_payload(data)) for data, _ in line.traffic[7]]
    assert [each.operation for each in asked] == ["hello"]  # and nothing after it
    nonces = {
        decode_request(unverified_payload(data)).nonce
        for each in line.traffic.values()
        for data, _ in each
        if decode_request(unverified_payload(data)).operation == "hello"
    }
    assert len(nonces) == 4  # one for each node


RUBBISH: dict[str, Callable[[Federation, bytes], bytes]] = {
    "unsigned": lambda federation, data: seal_payload(b"rubbish", UNSIGNED),
    "another's": lambda federation, data: seal_payload(data, federation.keys["ben"]),
    "the question": lambda federation, data: data,
    "nothing": lambda federation, data: b"",
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_a_node_that_passes_greetings_on_is_displaced_and_the_true_one_is_asked(federation, kind):
    """In the same round: nothing is lost by it."""
    clean = federation.serve(loopback(federation.clients("clean")), "clean")
    sides = federation.clients()
    intruder = relaying(sides["anna"], lambda data: RUBBISH[kind](federation, data))
    out = federation.serve(Loopback({7: intruder, **loopback(sides).up}))
    assert [row["clients"] for row in rows(out)] == [[*toy_clients.CLIENTS]] * 3
    assert bits(out) == bits(clean)


def test_a_node_that_swallows_questions_holds_nobody_up(federation):
    clean = federation.serve(loopback(federation.clients("clean")), "clean")
    sides = federation.clients()
    line = Loopback({7: sides["anna"], **loopback(sides).up})
    line.lost = lambda node, asked, reply: (
        None
        if node == 7 and decode_answer(unverified_payload(reply)).operation != "hello"
        else reply
    )
    out = federation.serve(line, **{"deployment.round_seconds": 60.0})
    assert bits(out) == bits(clean)


def ask(federation: Federation, side: ClientSide, request: Request) -> Answer:
    key = federation.keys["server"]
    return decode_answer(unverified_payload(side(seal_payload(encode_message(request), key))))


@pytest.fixture
def asked(federation):
    """Anna after a run, and the questions that she was asked in it, by operation and round."""
    side = federation.clients()["anna"]
    line = loopback({**federation.clients(), "anna": side})
    federation.serve(line)
    found = [decode_request(unverified_payload(data)) for data, _ in line.traffic[100]]
    return side, {(each.operation, each.round): each for each in found}


def test_what_was_carried_out_is_not_carried_out_again_whatever_was_deleted(federation, asked):
    side, requests = asked
    questions = [each for each in requests.values() if each.operation != "hello"]
    assert len(questions) == 7  # prepare, two evaluations, three rounds, finish
    given = {each: ask(federation, side, requests[each]) for each in requests}
    again = {each: answer for each, answer in given.items() if not answer.refused}
    assert {("fit", 3), ("fit", 2), ("finish", 3), ("evaluate", 3), ("prepare", 0)} <= again.keys()
    for path in side.folder.rglob("answer-*"):
        path.unlink()
    for each in questions:
        assert ask(federation, side, each).refused
    for name in ("runs", "cache"):
        shutil.rmtree(side.folder / name, ignore_errors=True)
    for each in questions:  # and to a trainer that begins anew
        assert ask(federation, federation.clients()["anna"], each).refused
    shutil.rmtree(side.folder)
    anew = federation.clients()["anna"]
    for each in questions:
        with pytest.raises(WireError, match="another journal"):
            ask(federation, anew, each)
    assert not (anew.folder / "runs").exists()


def test_a_question_is_of_one_run_and_an_older_run_is_over(federation, asked):
    side, requests = asked
    old = requests["fit", 1]
    newer = replace(old, run="newer", began=old.began + 1)
    assert "newer run" in ask(federation, side, replace(newer, began=old.began)).refused
    assert not ask(federation, side, newer).refused
    for each in requests.values():
        if each.operation != "hello":
            assert "newer run" in ask(federation, side, each).refused


def test_one_evaluation_a_round_and_one_finish_and_s_stays(tmp_path, monkeypatch):
    """A server asks for what it likes; what it may learn by it is counted."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    federation = Federation(tmp_path, federation={"rounds": 2, "targets": "two_stream"})
    side = federation.clients()["anna"]
    first = first_adapter(side.loaded.model, 0)

    def question(operation: Any, round: int, counted: int = 0, shift: float = 0.0) -> Answer:
        shared = {key: tensor + shift for key, tensor in first.items()}
        request = Request(
            operation, "run", agreement_digest(federation.recipe), "anna", "fedsdr", round, shared,
            counted, journal=side.journal.name,
        )  # fmt: skip
        return ask(federation, side, request)

    def states() -> list[str]:
        return sorted(path.name for path in side.folder.rglob("state-*"))

    for round in (0, 1, 2):
        counted = max(0, round - 1)
        judged = [question("evaluate", round, counted, shift) for shift in (0.0, 0.1, 0.2)]
        assert [bool(each.refused) for each in judged] == [False, True, True]
        assert question("evaluate", round, counted) == judged[0]
        if round < 2:
            assert question("fit", round + 1, counted=round).change
    assert states() == ["state-000001.safetensors", "state-000002.safetensors"]
    for counted in (0, 3):
        assert "counted last" in question("finish", 2, counted=counted).refused
    told = question("finish", 2, counted=2)
    assert not told.refused
    assert question("finish", 2, counted=2) == told
    assert question("finish", 2, counted=2, shift=0.1).refused
    assert question("evaluate", 2, shift=0.3).refused
    assert states() == ["state-000002.safetensors"]


def test_a_server_that_lost_a_checkpoint_is_answered_as_before(tmp_path, monkeypatch):
    """Its clients have moved on: the update of the round before the last is kept for that. With
    a state older than that, it is told what to do."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    federation = Federation(tmp_path, federation={"rounds": 4}, evaluate={"every": 1})
    clean = federation.serve(loopback(federation.clients("clean")), "clean")
    sides, kept = federation.clients(), {}
    real = rounds.save_checkpoint

    def save(folder: Path, round: int, state: Any) -> None:
        real(folder, round, state)
        kept[round] = {name: (folder / name).read_bytes() for name in (CHECKPOINT, "metrics.jsonl")}
        if round == 3:
            raise ServerDeath

    monkeypatch.setattr(rounds, "save_checkpoint", save)
    with pytest.raises(ServerDeath):
        federation.serve(loopback(sides))
    monkeypatch.setattr(rounds, "save_checkpoint", real)
    out = tmp_path / "out"
    for name, data in kept[1].items():  # rounds 2 and 3 are lost
        (out / name).write_bytes(data)
    federation.serve(loopback(sides))
    assert bits(out) == bits(clean)
    assert all(row["clients"] == [*toy_clients.CLIENTS] for row in rows(out))
    for name, data in kept[1].items():
        (out / name).write_bytes(data)
    for name in ("report.html", "result.json"):
        (out / name).unlink()
    with pytest.raises(UserError, match="begin a new run: move its run folder away"):
        federation.serve(loopback(sides))
    out.rename(tmp_path / "away")
    out = federation.serve(loopback(sides))
    assert all(row["clients"] == [*toy_clients.CLIENTS] for row in rows(out))


def test_a_round_that_is_run_again_is_without_whom_it_was_without(tmp_path, monkeypatch):
    """The server dies between a round's evaluation and its checkpoint; who was late comes back."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    federation = Federation(tmp_path, evaluate={"every": 1})
    sides = federation.clients()
    real = rounds.save_checkpoint

    def die(folder: Path, round: int, state: Any) -> None:
        if round == 2:
            raise ServerDeath
        real(folder, round, state)

    line = loopback(sides)

    def away(data: bytes) -> bytes:
        if decode_request(unverified_payload(data)).round == 2:
            raise OSError("it is away")
        return sides["cleo"](data)

    line.up[102] = away
    monkeypatch.setattr(rounds, "save_checkpoint", die)
    with pytest.raises(ServerDeath):
        federation.serve(line)
    monkeypatch.setattr(rounds, "save_checkpoint", real)
    out = federation.serve(loopback(sides))
    assert [len(row["clients"]) for row in rows(out)] == [3, 2, 3]
    for row in rows(out):
        assert {"loss/anna", "loss/ben", "loss/cleo"} <= row["eval"].keys()
