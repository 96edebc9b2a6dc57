"""Messages lost, late, twice or old, and processes that begin anew: the run ends the same."""

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsdr.algorithms.scaffold import CONTROL
from fedsdr.core import adapters, files
from fedsdr.core.metrics import Mean
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client.operations import ClientKeys, ClientSide
from fedsdr.deploy.protocol.messages import (
    Answer,
    decode_answer,
    decode_request,
    encode_message,
)
from fedsdr.deploy.protocol.signing import (
    seal_payload,
    unverified_payload,
)
from fedsdr.deploy.server.admission import FAILURES, Reply
from fedsdr.federation.checkpoint import load_checkpoint
from fedsdr.recipe.methods import resolve_methods
from support import toy_clients
from support.message_lines import Loopback, loopback
from support.signed_federation import SOON, Federation, ServerDeath, bits, rows


def test_a_question_that_got_an_error_is_asked_again(federation):
    clean = federation.serve(loopback(federation.clients("clean")), "clean")
    line = loopback(federation.clients())
    trouble = random.Random(0)

    def lost(node: int, asked: bytes, reply: bytes) -> bytes:
        if trouble.random() < 0.5:
            raise OSError("the line broke after the client had answered")
        return reply

    line.lost = lost
    out = federation.serve(line, **{"deployment.round_seconds": 30.0})
    assert bits(out) == bits(clean)
    assert all(row["clients"] == [*toy_clients.CLIENTS] for row in rows(out))


def test_a_straggler_is_left_out_and_its_late_answer_counts_nowhere(federation):
    line = loopback(federation.clients())
    late: list[bytes] = []

    def lost(node: int, asked: bytes, reply: bytes) -> bytes | None:
        answer = decode_answer(unverified_payload(reply))
        if node == 102 and answer.operation == "fit":
            late.append(reply)
            return None if answer.round == 2 else (late[0] if answer.round == 3 else reply)
        return reply

    line.lost = lost
    out = federation.serve(line)
    taken = [row["clients"] for row in rows(out)]
    assert taken == [[*toy_clients.CLIENTS], ["anna", "ben"], ["anna", "ben"]]
    assert "no answer within 1.5 s" in rows(out)[1]["absent"]["cleo"]
    assert "answered another request, maybe an older one" in rows(out)[2]["absent"]["cleo"]


def test_an_update_that_did_not_count_leaves_no_trace(tmp_path, monkeypatch):
    """Late or refused: the client's own tensors are those of a run in which it was not asked."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    federation = Federation(
        tmp_path,
        federation={"algorithm": "scaffold", "compression": "int8", "targets": "two_stream"},
        local={"smoothing_state": "keep"},
    )
    lines = {
        "late": lambda answer, reply: None if answer.round == 2 else reply,
        "refused": lambda answer, reply: reply[:-1] if answer.round == 2 else reply,
    }
    ends = {}
    for name, edit in lines.items():
        line = loopback(federation.clients(name))
        line.lost = _in_rounds(edit)
        ends[name] = federation.serve(line, f"out-{name}", **SOON), tmp_path / "of" / name
    line = loopback(federation.clients("deaf"))
    line.up[102] = _deaf_in_round(2, line.up[102])
    ends["deaf"] = federation.serve(line, "out-deaf"), tmp_path / "of" / "deaf"
    wanted, folder = ends.pop("deaf")
    for out, own in ends.values():
        assert [row["clients"] for row in rows(out)] == [row["clients"] for row in rows(wanted)]
        assert bits(out) == bits(wanted)
        assert _states(own) == _states(folder)
    assert _states(folder)


def test_who_was_away_in_prepare_is_of_the_federation_once_it_answers(tmp_path, monkeypatch):
    """SCAFFOLD's server holds the mean of what the clients' own folders hold."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    federation = Federation(
        tmp_path,
        federation={"algorithm": "scaffold", "rounds": 2},
        deployment={"min_clients": 2, "prepare_seconds": 0.5},
    )
    sides = federation.clients()
    line = loopback(sides)

    def away(data: bytes) -> bytes:
        if decode_request(unverified_payload(data)).operation == "prepare":
            raise OSError("it is away")
        return sides["cleo"](data)

    line.up[102] = away
    out = federation.serve(line)
    records = {client: float(len(side.loaded.raw[client])) for client, side in sides.items()}
    assert files.read_json(out / "weights.json") == records
    _, state = load_checkpoint(out)
    assert state.population == sum(records.values())
    mean = adapters.zeros_like(state.memory[CONTROL])
    for client, side in sides.items():
        [engine] = side._engines.values()
        held = engine.state(client, 2).memory[CONTROL]
        mean = adapters.add(mean, adapters.scale(held, records[client] / state.population))
    off = adapters.subtract(state.memory[CONTROL], mean)
    assert adapters.norm(off) < 1e-5 * adapters.norm(mean)


def _in_rounds(edit: Callable[[Answer, bytes], bytes | None]) -> Any:
    def lost(node: int, asked: bytes, reply: bytes) -> bytes | None:
        answer = decode_answer(unverified_payload(reply))
        return edit(answer, reply) if node == 102 and answer.operation == "fit" else reply

    return lost


def _deaf_in_round(round: int, client: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def answer(data: bytes) -> bytes:
        request = decode_request(unverified_payload(data))
        if (request.operation, request.round) == ("fit", round):
            raise OSError("it hears nothing")
        return client(data)

    return answer


def _states(folder: Path) -> dict[tuple[str, str], bytes]:
    """(client, file) -> what it keeps; runs have names of their own."""
    found = folder.rglob("state-*.safetensors")
    return {(p.relative_to(folder).parts[0], p.name): p.read_bytes() for p in found}


def test_a_client_that_stays_away_is_not_waited_for_to_the_end(federation):
    """It answers hello, and is gone before the first round."""
    line = loopback(federation.clients())
    served: dict[int, Callable[[bytes], bytes]] = dict(line.up)

    def leaving(data: bytes) -> bytes:
        reply = served[102](data)
        line.up.pop(102, None)
        return reply

    line.up[102] = leaving
    began = time.monotonic()
    out = federation.serve(
        line, **{"deployment.round_seconds": 600.0, "deployment.reconnect_seconds": 0.2}
    )
    assert time.monotonic() - began < 60
    for row in rows(out):
        assert "it did not come back within 0.2 s" in row["absent"]["cleo"]


class Twice(Loopback):
    """Delivers every reply twice."""

    def receive(self, ids: Collection[str]) -> list[Reply]:
        return [reply for reply in super().receive(ids) for _ in range(2)]


def test_a_client_that_answers_twice_is_counted_once(federation):
    clean = federation.serve(loopback(federation.clients("clean")), "clean")
    out = federation.serve(Twice(loopback(federation.clients()).up))
    assert bits(out) == bits(clean)


def test_a_client_behind_two_nodes_is_counted_once(federation):
    clean = federation.serve(loopback(federation.clients("clean")), "clean")
    sides = federation.clients()
    line = Loopback({**loopback(sides).up, 200: sides["anna"]})
    out = federation.serve(line)
    assert bits(out) == bits(clean)
    asked = [decode_request(unverified_payload(data)).operation for data, _ in line.traffic[200]]
    other = [decode_request(unverified_payload(data)).operation for data, _ in line.traffic[100]]
    assert {asked.count("fit"), other.count("fit")} == {3}  # both, and she trains once for them
    sides["anna"].audit.write_rest()
    left: Counter[str] = Counter()
    for row in files.read_json_lines(sides["anna"].audit.path):
        if row["round"]:
            left[row["digest"]] += row.get("count", 1)
    assert {*left.values()} == {2}


def test_a_client_that_begins_anew_before_each_message_changes_nothing(federation):
    clean = federation.serve(loopback(federation.clients("clean")), "clean")
    anew = {client: Anew(federation, client) for client in toy_clients.CLIENTS}
    out = federation.serve(loopback(anew))
    assert bits(out) == bits(clean)


class Anew:
    """A client whose process ends after every answer."""

    def __init__(self, federation: Federation, client: str) -> None:
        self.federation, self.client = federation, client
        self.loaded = federation.clients()[client].loaded

    def __call__(self, data: bytes) -> bytes:
        keys = ClientKeys(self.federation.keys[self.client], self.federation.public["server"])
        side = ClientSide(
            self.loaded, resolve_methods(self.federation.recipe), self.client,
            self.federation.folder / "of" / "sides" / self.client, keys, silent_reporter(),
        )  # fmt: skip
        return side(data)


def test_a_server_that_dies_at_any_message_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    federation = Federation(tmp_path, federation={"targets": "two_stream"})
    clean = federation.serve(loopback(federation.clients("clean")), "clean")
    sides = federation.clients()
    deaths = 0
    for left in itertools.count(1):
        line = Mortal(loopback(sides).up, left)
        try:
            out = federation.serve(line)
            break
        except ServerDeath:
            deaths += 1
    assert deaths > 5
    assert bits(out) == bits(clean)
    assert [row["clients"] for row in rows(out)] == [[*toy_clients.CLIENTS]] * 3
    for client in toy_clients.CLIENTS:
        states = [
            sorted((tmp_path / "of" / where / client).rglob("state-*.safetensors"))
            for where in ("clean", "sides")
        ]
        assert [p.read_bytes() for p in states[0]] == [p.read_bytes() for p in states[1]]
        assert states[0]


class Mortal(Loopback):
    """Lets so many replies through, then the server dies."""

    def __init__(self, up: Mapping[int, Callable[[bytes], bytes]], left: int) -> None:
        super().__init__(up)

        def lost(node: int, asked: bytes, reply: bytes) -> bytes:
            nonlocal left
            left -= 1
            if left < 0:
                raise ServerDeath
            return reply

        self.lost = lost


def test_metrics_of_those_that_answered_are_merged(federation):
    """An evaluation without one client is of the others' records, and told."""
    line = loopback(federation.clients())

    def lost(node: int, asked: bytes, reply: bytes) -> bytes:
        answer = decode_answer(unverified_payload(reply))
        if node == 102 and answer.operation == "evaluate":
            answer = replace(answer, metrics={}, refused="no")
            return seal_payload(encode_message(answer), federation.keys["cleo"])
        return reply

    line.lost = lost
    out = federation.serve(line)
    judged = files.read_json_lines(out / "metrics.jsonl")[-1]["eval"]
    assert judged.keys() == {"loss", "loss/anna", "loss/ben"}
    told = [
        decode_answer(unverified_payload(reply)).metrics["loss"]
        for node in (100, 101)
        for _, reply in line.traffic[node][-2:-1]
    ]
    assert judged["loss"] == Mean(*map(sum, zip(*told, strict=True))).value


def test_an_old_answer_is_no_answer_to_a_new_question(tmp_path, monkeypatch):
    """A node that carries messages keeps cleo's first evaluation, and gives it every time."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    federation = Federation(tmp_path, evaluate={"every": 1})
    line, kept = loopback(federation.clients()), []

    def lost(node: int, asked: bytes, reply: bytes) -> bytes:
        if node != 102 or decode_answer(unverified_payload(reply)).operation != "evaluate":
            return reply
        kept.append(reply)
        return kept[0]

    line.lost = lost
    out = federation.serve(line)
    metrics = files.read_json_lines(out / "metrics.jsonl")
    judged = [row["eval"].keys() for row in metrics if "eval" in row]
    # It is displaced and greeted again, and asked until it is avoided.
    assert len(kept) == 1 + FAILURES * (len(judged) - 1) > 1
    assert ["loss/cleo" in keys for keys in judged] == [True] + [False] * (len(judged) - 1)
