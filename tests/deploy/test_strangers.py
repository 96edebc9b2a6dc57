"""Who is turned away: nodes without a key, other recipes, models and data, what nobody signed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client.begun import BEGUN
from fedsdr.deploy.client.operations import ClientKeys, ClientSide, RefusalError
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
    seal_payload,
    unverified_payload,
)
from fedsdr.deploy.server.serve import known_model
from fedsdr.recipe.load import override_recipe
from fedsdr.recipe.methods import own_name, resolve_methods
from support import toy_clients
from support.message_lines import loopback
from support.signed_federation import ServerDeath, rows


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
    keys = ClientKeys(federation.keys["cleo"], federation.public["server"])
    sides["cleo"] = ClientSide(
        sides["cleo"].loaded, resolve_methods(one), "cleo", tmp_path / "other" / "cleo", keys,
        silent_reporter(),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"2 of 3 .*cleo.*federation.rounds.*here .* 7, .* 3"):
        federation.serve(
            loopback(sides), **{"deployment.min_clients": 3, "deployment.wait_seconds": 0.5}
        )
    sides = federation.clients()
    loaded = sides["anna"].loaded  # who comes first decides nothing
    loaded.identity = {**loaded.identity, "tokenizer": "another", "generation settings": "x"}
    parts = r"(generation settings, tokenizer|tokenizer, generation settings)\)"
    differs = "node 100: its base model is not the other clients': it differs in "
    with pytest.raises(UserError, match=differs + parts):
        federation.serve(
            loopback(sides), "two", **{"deployment.min_clients": 3, "deployment.wait_seconds": 0.5}
        )
    out = federation.serve(loopback(sides), "most")
    assert [row["clients"] for row in rows(out)] == [["ben", "cleo"]] * 3
    assert files.read_json(out / "environment.json")["identity"] == sides["ben"].loaded.identity


def test_a_client_that_does_not_say_what_its_model_is_is_turned_away(federation, monkeypatch):
    hello = ClientSide._hello

    def silent(side: ClientSide, request: Request, blank: Answer) -> Answer:
        answer = hello(side, request, blank)
        return replace(answer, facts={"journal": answer.facts["journal"]})

    monkeypatch.setattr(ClientSide, "_hello", silent)
    with pytest.raises(UserError, match="node 100: it does not say what its base model is"):
        federation.serve(loopback(federation.clients()), **{"deployment.wait_seconds": 0.5})


def test_a_server_that_was_restarted_goes_on_with_no_other_model(federation):
    sides = federation.clients()
    identity = sides["anna"].loaded.identity

    def dies(node: int, asked: bytes, reply: bytes) -> bytes:
        if decode_request(unverified_payload(asked)).operation == "prepare":
            raise ServerDeath
        return reply

    line = loopback(sides)
    line.lost = dies
    with pytest.raises(ServerDeath):
        federation.serve(line)
    assert known_model(federation.folder / "out") == identity
    for side in sides.values():
        side.loaded.identity = {**identity, "tokenizer": "another"}
    with pytest.raises(UserError, match=r"0 of 2 clients .* it differs in tokenizer"):
        federation.serve(
            loopback(sides), **{"deployment.min_clients": 2, "deployment.wait_seconds": 0.5}
        )


def test_a_run_of_an_earlier_version_knows_its_weights_alone(tmp_path):
    assert known_model(tmp_path) == {}
    files.write_json(tmp_path / "environment.json", {"data": "a digest"})
    assert known_model(tmp_path) == {"weights": "a digest"}


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
