"""What a line, a client or a server can do wrong: refused, waited for, or gone on from."""

import itertools
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.algorithms.scaffold import CONTROL
from fedsdr.core import adapters, files
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client.begun import BEGUN
from fedsdr.deploy.client.operations import ClientSide, RefusalError
from fedsdr.deploy.protocol import messages as wire
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
    message_digest,
    new_key,
    read_private,
    read_public,
    seal_payload,
    unverified_payload,
)
from fedsdr.deploy.server.admission import FAILURES, Reply
from fedsdr.deploy.server.serve import serve_federation
from fedsdr.federation import rounds
from fedsdr.federation.checkpoint import load_checkpoint
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.methods import own_name
from support import tiny_recipe, toy_clients
from support.message_lines import Loopback, client_sides, loopback

PATIENCE = {"wait_seconds": 10.0, "round_seconds": 1.5, "prepare_seconds": 20.0}
SOON = {"deployment.reconnect_seconds": 0.05}
CHECKPOINT = "checkpoint.safetensors"


class Federation:
    """Three clients with keys, and servers that come and go."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        federation = {"targets": "raw", "rounds": 3, **sections.pop("federation", {})}
        self.recipe_file = tiny_recipe.write_recipe(
            folder,
            federation=federation,
            deployment={**PATIENCE, **sections.pop("deployment", {})},
            evaluate={"personal": False, "every": 0, **sections.pop("evaluate", {})},
            **sections,
        )
        self.folder, self.recipe = folder, load_recipe(self.recipe_file)
        names = [*toy_clients.CLIENTS, "server", "stranger"]
        self.public = {name: read_public(new_key(folder / f"{name}.key"), name) for name in names}
        self.keys = {name: read_private(folder / f"{name}.key") for name in names}
        self.roster = {client: self.public[client] for client in toy_clients.CLIENTS}

    def clients(self, where: str = "sides") -> dict[str, ClientSide]:
        """The clients anew, as after a restart: what they know is on their disks."""
        return client_sides(
            self.recipe_file, self.folder / "of" / where, self.keys, self.public["server"]
        )

    def serve(self, line: Loopback, out: str = "out", **changes: Any) -> Path:
        recipe = override_recipe(self.recipe, changes)
        serve_federation(
            recipe,
            self.folder / out,
            line,
            self.roster,
            silent_reporter(),
            self.keys["server"],
            pause=0.001,
        )
        return self.folder / out


@pytest.fixture
def federation(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    return Federation(tmp_path)


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for row in files.read_json_lines(out / "metrics.jsonl") if row["round"]]


def bits(out: Path) -> bytes:
    return (out / CHECKPOINT).read_bytes()


# --- Hostile and broken clients


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


# --- Strangers


def test_a_node_that_is_nobody_is_turned_away(federation):
    sides: dict[str, Callable[[bytes], bytes]] = {**federation.clients()}

    def stranger(data: bytes) -> bytes:
        payload = unverified_payload(data)
        request = decode_request(payload)
        told = Answer(
            "hello", request.run, "anna", facts={"model": "mine"}, request=message_digest(payload)
        )
        return seal_payload(encode_message(told), federation.keys["stranger"])

    line = loopback(sides)
    line.up = {7: stranger, **line.up}  # it answers first
    line.traffic[7] = []
    out = federation.serve(line)
    assert [row["clients"] for row in rows(out)] == [[*toy_clients.CLIENTS]] * 3
    assert len(line.traffic[7]) == 1  # a hello, which carries no adapter
    assert not decode_request(unverified_payload(line.traffic[7][0][0])).shared


def test_a_client_with_another_recipe_or_model_is_turned_away(federation, tmp_path):
    sides = federation.clients()
    one = override_recipe(federation.recipe, {"federation.rounds": 7})
    sides["cleo"] = ClientSide(
        sides["cleo"].bench, one, "cleo", tmp_path / "other" / "cleo", silent_reporter(),
        federation.keys["cleo"], federation.public["server"],
    )  # fmt: skip
    with pytest.raises(UserError, match=r"2 of 3 .*cleo.*federation.rounds.*here .* 7, .* 3"):
        federation.serve(
            loopback(sides), **{"deployment.min_clients": 3, "deployment.wait_seconds": 0.5}
        )
    sides = federation.clients()
    bench = sides["anna"].bench  # who comes first decides nothing
    bench.identity = {**bench.identity, "tokenizer": "another"}
    with pytest.raises(UserError, match=r"base model is not the other clients': .* in tokenizer"):
        federation.serve(
            loopback(sides), "two", **{"deployment.min_clients": 3, "deployment.wait_seconds": 0.5}
        )
    out = federation.serve(loopback(sides), "most")
    assert [row["clients"] for row in rows(out)] == [["ben", "cleo"]] * 3
    assert files.read_json(out / "environment.json")["identity"] == sides["ben"].bench.identity


def test_a_client_does_not_go_on_with_another_model_or_other_data(federation):
    """It has been restarted meanwhile, and refuses the method that it began."""
    sides = federation.clients()
    federation.serve(loopback(sides))
    [begun] = sides["anna"].folder.glob(f"runs/*/{BEGUN}")
    assert begun.stat().st_mode & 0o77 == 0
    found = files.read_json(begun)
    method = own_name(federation.recipe)
    request = Request("prepare", begun.parent.name, "-", "anna", method)
    for part in ("data", "chat template"):
        files.write_json(begun, {**found, part: "another"}, private=True)
        with pytest.raises(RefusalError, match=f"this client's {part} changed since the run began"):
            federation.clients()["anna"]._begin(request)
    files.write_json(begun, found, private=True)
    federation.clients()["anna"]._begin(request)


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "egress.jsonl"
    }


def test_a_client_carries_out_only_what_its_own_server_signed(federation):
    side = federation.clients()["anna"]
    request = Request("hello", "run", "digest", "-", nonce="0" * 32)
    before = listing(side.folder)
    for sealed in (
        seal_payload(encode_message(request), UNSIGNED),
        seal_payload(encode_message(request), federation.keys["ben"]),
        encode_message(request),
        b"",
        seal_payload(encode_message(request), federation.keys["server"])[:-1],
    ):
        with pytest.raises(WireError):
            side(sealed)
    assert listing(side.folder) == before
    side.audit.write_rest()
    noted = files.read_json_lines(side.audit.path)
    assert sum(row.get("count", 1) for row in noted) == 5
    assert decode_answer(
        unverified_payload(side(seal_payload(encode_message(request), federation.keys["server"])))
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"client": "ben"}, "this is client 'anna'"),
        ({"recipe": "other"}, "recipe is not the server's"),
        ({"method": "fedavg+median"}, "has no method 'fedavg\\+median'"),
        ({"round": 0}, "no round 0"),
        ({"round": 4}, "no round 4 of 3"),
        ({"operation": "evaluate", "round": 4}, "no round 4 of 3"),
        ({"operation": "prepare"}, "not in round 1"),
        ({"operation": "prepare", "round": 0}, "unexpected keys"),
        ({"counted": 1}, "round 1 counted last, and here it is one from 0 to 0"),
        ({"shared": "nan"}, "NaN or infinite"),
        ({"shared": "misshapen"}, "has shape"),
        ({"shared": "double"}, "float64, expected"),
        ({"shared": "missing"}, "missing keys"),
        ({"shared": "more"}, "unexpected keys"),
        ({"operation": "evaluate", "shared": "more"}, "unexpected keys"),
        ({"operation": "finish"}, "round 1 is not the last"),
    ],
)
def test_a_client_refuses_what_its_server_may_not_ask(federation, changes, reason):
    sides = federation.clients()
    line = loopback(sides)
    federation.serve(line, **{"federation.rounds": 3})
    [asked] = [
        request
        for data, _ in line.traffic[100]
        if (request := decode_request(unverified_payload(data))).operation == "fit"
        and request.round == 1
    ]
    sent = asked.shared
    edits = {
        "nan": {key: tensor * float("nan") for key, tensor in sent.items()},
        "misshapen": {key: tensor[:, :-1] for key, tensor in sent.items()},
        "double": {key: tensor.double() for key, tensor in sent.items()},
        "missing": dict(list(sent.items())[1:]),
        "more": sent | {f"folded/{key}": tensor for key, tensor in sent.items()},
    }
    if "shared" in changes:
        changes = changes | {"shared": edits[changes["shared"]]}
    request = replace(asked, run="another", began=asked.began + 1, **changes)
    answer = decode_answer(
        unverified_payload(
            sides["anna"](seal_payload(encode_message(request), federation.keys["server"]))
        )
    )
    assert reason.replace("\\", "") in answer.refused
    assert not answer.change
    assert not answer.metrics


def test_a_round_that_is_over_stays_over(federation):
    sides = federation.clients()
    line = loopback(sides)
    federation.serve(line)
    asked = [
        data for data, _ in line.traffic[100] if decode_request(unverified_payload(data)).round
    ]
    early = decode_answer(unverified_payload(sides["anna"](asked[0])))
    assert decode_answer(unverified_payload(line.traffic[100][1][1])).operation == "prepare"
    assert "fit of round 1 is over here: finish of round 3 was last" in early.refused
    last = decode_request(unverified_payload(asked[-3]))
    assert (last.operation, last.round) == ("fit", 3)
    other = replace(last, shared={key: t + 1 for key, t in last.shared.items()})
    answer = decode_answer(
        unverified_payload(
            sides["anna"](seal_payload(encode_message(other), federation.keys["server"]))
        )
    )
    assert "fit of round 3 is over here: finish of round 3 was last" in answer.refused


# --- Lines that break, and processes that begin anew


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
    records = {client: float(len(side.bench.raw[client])) for client, side in sides.items()}
    assert files.read_json(out / "weights.json") == records
    _, state = load_checkpoint(out)
    assert state.population == sum(records.values())
    mean = adapters.zeros_like(state.memory[CONTROL])
    for client, side in sides.items():
        [course] = side._courses.values()
        held = course.engine.state(client, 2).memory[CONTROL]
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
        self.bench = federation.clients()[client].bench

    def __call__(self, data: bytes) -> bytes:
        side = ClientSide(
            self.bench, self.federation.recipe, self.client,
            self.federation.folder / "of" / "sides" / self.client, silent_reporter(),
            self.federation.keys[self.client], self.federation.public["server"],
        )  # fmt: skip
        return side(data)


class Stop(BaseException):
    """The server dies here."""


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
        except Stop:
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
                raise Stop
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


# --- Every answer is bound to one question, every question to one client and one moment


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
    first = side.bench.first_adapter(0)

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
            raise Stop

    monkeypatch.setattr(rounds, "save_checkpoint", save)
    with pytest.raises(Stop):
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
            raise Stop
        real(folder, round, state)

    line = loopback(sides)

    def away(data: bytes) -> bytes:
        if decode_request(unverified_payload(data)).round == 2:
            raise OSError("it is away")
        return sides["cleo"](data)

    line.up[102] = away
    monkeypatch.setattr(rounds, "save_checkpoint", die)
    with pytest.raises(Stop):
        federation.serve(line)
    monkeypatch.setattr(rounds, "save_checkpoint", real)
    out = federation.serve(loopback(sides))
    assert [len(row["clients"]) for row in rows(out)] == [3, 2, 3]
    for row in rows(out):
        assert {"loss/anna", "loss/ben", "loss/cleo"} <= row["eval"].keys()
