"""What others have written is shown as it is: no escape codes, no markup, no line of its own."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fedsdr.core import files
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.deploy.client.operations import RefusalError
from fedsdr.deploy.flower.grid import FlowerLink
from fedsdr.deploy.protocol.egress import Audit
from fedsdr.deploy.protocol.messages import (
    LONGEST,
    Answer,
    Request,
    WireError,
    decode_answer,
    encode_message,
    printable_text,
)
from fedsdr.deploy.protocol.signing import UNSIGNED, seal_payload, unverified_payload
from fedsdr.deploy.sites.folder import ROSTER, RUN, STATUS
from fedsdr.deploy.sites.status import print_status
from support.message_lines import client_sides
from support.tiny_recipe import write_recipe
from support.toy_clients import CLIENTS

HOSTILE = "\x1b[2J\x1b]0;owned\x07 [/red] [[data.sources]] \r\nstate: finished\u202e"


def test_what_is_printable_is_left_alone():
    assert printable_text("für [x] 日本") == "für [x] 日本"
    assert printable_text(HOSTILE).isprintable()
    assert len(printable_text(HOSTILE)) == len(HOSTILE)


def test_a_refusal_that_is_not_printable_is_no_message():
    answer = Answer("fit", "run", "anna", refused="a reason", request="0" * 32)
    data = encode_message(answer).replace(b"a reason", b"a\\\\nason")
    with pytest.raises(WireError, match="cannot be printed"):
        decode_answer(data)
    assert decode_answer(encode_message(replace(answer, refused=printable_text(HOSTILE)))).refused


def test_a_client_says_why_it_refuses_on_one_line(tmp_path, monkeypatch):
    """However long the reason is and whatever it quotes, it can be sent."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    side = client_sides(write_recipe(tmp_path), tmp_path / "sides")[CLIENTS[0]]

    def refuse(request: Any) -> None:
        raise RefusalError(HOSTILE + "x" * 2 * LONGEST)

    monkeypatch.setattr(side, "_check", refuse)
    request = seal_payload(
        encode_message(Request("prepare", "run", "recipe", CLIENTS[0], journal=side.journal.name)),
        UNSIGNED,
    )
    refused = decode_answer(unverified_payload(side(request))).refused
    assert refused.startswith(printable_text(HOSTILE))
    assert len(refused) == LONGEST


def test_an_error_of_flowers_is_one_line():
    message = SimpleNamespace(
        metadata=SimpleNamespace(reply_to_message_id="7"),
        has_error=lambda: True,
        error=SimpleNamespace(reason=HOSTILE, code=2),
    )
    grid: Any = SimpleNamespace(pull_messages=lambda ids: [message])
    [reply] = FlowerLink(grid, 1.0).receive(["7"])
    assert reply.error == f"{printable_text(HOSTILE)} (Flower's code 2)"


def test_the_status_shows_brackets_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    error = printable_text(HOSTILE)
    (tmp_path / RECIPE_FILE).write_text("model.path = 'lab'\n")
    files.write_json(tmp_path / ROSTER, {"clients": {"anna": None}})
    files.write_json(tmp_path / STATUS, {"state": "failed", "error": error})
    train = {"bytes_up": 0, "bytes_down": 0, "seconds": 1.0}
    row = {"round": 1, "clients": [], "absent": {"anna": error}, "train": train}
    files.write_json_lines(tmp_path / RUN / "metrics.jsonl", [row])
    print_status(tmp_path)
    shown = capsys.readouterr().out
    assert shown.count("[/red] [[data.sources]]") == 2
    client = tmp_path / "client"
    files.write_json(client / "client.json", {"id": "anna"})
    (client / "private").mkdir()
    Audit(client / "private").refused("a reason [/red]")
    print_status(client)
    assert "a reason [/red]" in capsys.readouterr().out
