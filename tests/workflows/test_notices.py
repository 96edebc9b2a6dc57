"""What is left out, cut, frozen, not judged or not rewritten: a line each, wherever it is said."""

import html
import json
import tomllib
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from transformers import MixtralConfig, MixtralForCausalLM
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import NOTICES_FILE, SKIPPED_FILE
from fedsdr.core.notices import Notice, name_items, records_by_client
from fedsdr.core.progress import silent_reporter
from fedsdr.data.records import Record
from fedsdr.data.template import ChatFormat
from fedsdr.distillation.rewrite import Rewritten
from fedsdr.recipe.load import load_recipe, parse_recipe, to_toml
from fedsdr.workflows import examples
from fedsdr.workflows.distill import kept_raw
from fedsdr.workflows.prepare import PreparedRun, prepare_run
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe.write_model(tmp_path_factory.mktemp("notices") / "model")


Rows = dict[str, list[dict[str, Any]]]


def row(prompt: int, response: int) -> dict[str, str]:
    """A record with so many words: prompts have two tokens more, responses one."""
    return {"prompt": "red " * prompt, "response": "blue " * response}


def setting(folder: Path, base: Path, rows: Rows, **sections: dict[str, Any]) -> PreparedRun:
    tables = tiny_recipe.recipe_tables(
        base, tiny_recipe.write_data_files(folder / "data", tuple(rows))
    )
    for name, each in rows.items():
        tiny_recipe.write_rows(folder / "data" / f"{name}.jsonl", each)
    tables["data"]["held_out"] = 0.5
    for name, changes in sections.items():
        tables[name] = tables.get(name, {}) | changes
    (folder / "recipe.toml").write_text(tomli_w.dumps(tables))
    return prepare_run(load_recipe(folder / "recipe.toml"))


def words(found: PreparedRun) -> list[str]:
    return [str(notice) for notice in found.notices]


def test_nothing_is_said_where_all_is_used(tmp_path, model):
    assert words(setting(tmp_path, model, {"anna": [row(2, 2)] * 2})) == []


def test_records_that_do_not_fit(tmp_path, model):
    rows = {"anna": [row(2, 2)] * 4 + [row(70, 2)] * 4, "ben": [row(70, 2)] * 9 + [row(2, 70)] * 9}
    found = setting(tmp_path, model, rows, federation={"targets": "raw"})
    said = words(found)
    clients = {client.name: client for client in found.clients}
    encoded = found.records.encoded
    kept = {name: (len(each.train), len(each.held_out)) for name, each in encoded.items()}
    long = {
        name: [sum(len(r.instruction) > 200 for r in part) for part in (c.train, c.held_out)]
        for name, c in clients.items()
    }
    assert all(n > 0 for pair in long.values() for n in pair)
    assert kept == {
        name: (len(c.train) - long[name][0], len(c.held_out) - long[name][1])
        for name, c in clients.items()
    }
    assert len(said) == 3
    places = [f"anna {long['anna'][k]}, ben {long['ben'][k]}; first anna.jsonl:" for k in (0, 1)]
    room = "records whose prompt leaves no room for a response in 64 tokens"
    assert said[0].startswith(f"left out: {sum(n for n, _ in long.values())} {room} ({places[0]}")
    assert said[1].startswith(f"cut: {len(encoded['ben'].train)} responses at 64 tokens")
    assert said[2].startswith(f"not judged: {sum(n for _, n in long.values())} held-out records")
    assert places[1] in said[2]


def test_a_response_that_fits_exactly_is_not_cut(tmp_path, model):
    whole = setting(tmp_path, model, {"anna": [row(30, 31)] * 2}, federation={"targets": "raw"})
    assert len(whole.records.encoded["anna"].train[0]) == 64
    assert words(whole) == []
    more = setting(tmp_path, model, {"anna": [row(30, 32)] * 2}, federation={"targets": "raw"})
    assert [each.kind for each in more.notices] == ["cut"]


def test_clients_that_are_not_judged(tmp_path, model):
    rows = {"anna": [row(2, 2)] * 2, "ben": [row(2, 2)]}
    assert words(setting(tmp_path, model, rows)) == ["not judged: ben, without a held-out record"]
    [line] = words(setting(tmp_path, model, rows, data={"held_out": 0.0}))
    assert line.startswith("not judged: any client")


def test_a_run_goes_on_without_held_out_records_that_are_too_long(tmp_path, model, monkeypatch):
    """One client's only held-out record is too long; the others' fit."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    for long in range(2):  # whichever of the two records is held out
        rows = {"anna": [row(2, 2)] * 2, "ben": [row(70 if i == long else 2, 2) for i in range(2)]}
        options = {"federation": {"rounds": 1, "targets": "raw"}}
        if not (found := setting_or_none(tmp_path, model, rows, **options)):
            continue
        run_recipe(found.recipe, tmp_path / "out", silent_reporter())
        result = files.read_json(tmp_path / "out" / "result.json")
        assert "loss/anna" in result
        assert "loss/ben" not in result
        assert [each["kind"] for each in files.read_json(tmp_path / "out" / NOTICES_FILE)] == [
            "not judged", "not judged",
        ]  # fmt: skip
        return
    pytest.fail("neither record was held out")


def setting_or_none(folder: Path, base: Path, rows: Rows, **options: Any) -> PreparedRun | None:
    """None where the long record is the one to train on, so that nothing fits."""
    try:
        return setting(folder, base, rows, **options)
    except ValueError:
        return None


def test_records_that_cannot_be_rewritten(tmp_path, model):
    """The context is 96: a request repeats the record, and the rewrite may be as long."""
    rows = {"anna": [row(30, 30)] * 4 + [row(2, 2)] * 4}
    [line] = words(setting(tmp_path, model, rows))
    assert line.startswith("not rewritten: ")
    assert "whose rewriting would not fit 96 tokens (anna " in line
    assert words(setting(tmp_path, model, rows, federation={"targets": "raw"})) == []


def test_a_length_beyond_the_context(tmp_path, model):
    [line] = words(setting(tmp_path, model, {"anna": [row(2, 2)] * 2}, model={"max_length": 200}))
    assert line == "cut: model.max_length = 200 to the 96 of the model's context"


def test_tokens_beyond_the_table_that_no_record_has(tmp_path, model):
    changed = tiny_recipe.write_model(tmp_path / "model")
    tiny_recipe.word_tokenizer([*tiny_recipe.WORDS, "never"]).save_pretrained(changed)
    [line] = words(setting(tmp_path, changed, {"anna": [row(2, 2)] * 2}))
    assert (
        line == "unused: 1 token of the tokenizer beyond the model's table of 23: no record has one"
    )


def test_a_chat_template_with_a_date(tmp_path):
    changed = tiny_recipe.write_model(tmp_path / "model")
    tokenizer = tiny_recipe.word_tokenizer(tiny_recipe.WORDS)
    tokenizer.chat_template = "{{ strftime_now('%Y') }} " + tiny_recipe.TEMPLATE
    tokenizer.save_pretrained(changed)
    found = setting(tmp_path, changed, {"anna": [row(2, 2)] * 2}, model={"date": date(2025, 2, 3)})
    [line] = words(found)
    assert line.startswith("dated: ")
    assert "2025-02-03 (model.date)" in line
    assert parse_recipe(tomllib.loads(to_toml(found.recipe))) == found.recipe


def test_frozen_experts(tmp_path):
    tokenizer = tiny_recipe.word_tokenizer(tiny_recipe.WORDS)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=96, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    base = MixtralForCausalLM(config)
    base.save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    found = setting(
        tmp_path, tmp_path / "moe", {"anna": [row(2, 2)] * 2}, lora={"targets": "all-linear"}
    )
    [notice] = found.notices
    assert notice.kind == "frozen"
    experts = 4 * (3 * 16 * 24)  # gate, up and down
    assert f"experts are not ({experts / base.num_parameters():.0%} of the weights)" in str(notice)


# Conversations


def talk(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "red"} for role in roles]}


def test_conversations_that_the_template_refuses_are_left_out_where_the_recipe_says(
    tmp_path, model
):
    strict = tmp_path / "strict.jinja"
    strict.write_text(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m.content }} {% endfor %}"
    )
    good, bad = talk("user", "assistant"), talk("user", "user", "assistant")
    found = setting(
        tmp_path, model, {"anna": [good] * 3 + [bad], "ben": [good] * 2},
        data={"invalid": "skip"}, model={"template": str(strict)},
    )  # fmt: skip
    reason = "the chat template refuses this conversation (Roles must alternate)"
    assert words(found) == [f"skipped: 1 record that cannot be learnt: anna.jsonl:4, {reason}"]
    assert [(row.place, row.reason) for row in found.skipped] == [("anna.jsonl:4", reason)]
    held = [record.origin for client in found.clients for record in client.train + client.held_out]
    assert len(held) == 5
    assert "anna.jsonl:4" not in held
    with pytest.raises(
        UserError, match=r"client 'ben': no record is left .* \(first ben.jsonl:\d: the chat"
    ):
        setting(
            tmp_path, model, {"anna": [good] * 3, "ben": [bad] * 2},
            data={"invalid": "skip"}, model={"template": str(strict)},
        )  # fmt: skip


def test_a_record_is_tokenised_once_also_where_refused_ones_are_skipped(
    tmp_path, model, monkeypatch
):
    rows = {"anna": [row(number, 2) for number in range(1, 7)], "ben": [row(2, 2), row(7, 2)]}
    seen: dict[str, Counter[Record]] = {"encoded": Counter(), "asked": Counter()}
    encode, ask = ChatFormat.encode, examples.rewriting_job

    def counting(chat, record, *rest):
        seen["encoded"][record] += 1
        return encode(chat, record, *rest)

    def asking(chat, record, *rest):
        seen["asked"][record] += 1
        return ask(chat, record, *rest)

    monkeypatch.setattr(ChatFormat, "encode", counting)
    monkeypatch.setattr(examples, "rewriting_job", asking)
    found = setting(
        tmp_path, model, rows,
        data={"invalid": "skip"}, federation={"rounds": 1, "targets": "two_stream"},
    )  # fmt: skip
    train = {record for client in found.clients for record in client.train}
    assert {*seen["asked"]} == train < {*seen["encoded"]}
    assert {*seen["asked"].values(), *seen["encoded"].values()} == {1}


def test_turns_that_are_not_learnt_are_counted(tmp_path, model):
    rows = [talk("user", "assistant", "user", "assistant")] * 4
    last = setting(tmp_path, model, {"anna": rows})
    assert words(last) == ['conversations: 4 of 8 assistant turns are learnt (data.learn = "last")']
    whole = setting(tmp_path, model, {"anna": rows}, data={"learn": "all"})
    assert words(whole) == []
    [anna] = whole.clients
    assert (len(anna.train), len(anna.held_out)) == (4, 4)


# Where they are said


def test_check_run_and_report_say_the_same(tmp_path, model, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    rows = {"anna": [row(2, 2)] * 6, "ben": [row(2, 2), {"prompt": "red", "response": ""}]}
    source = {"path": str(tmp_path / "data" / "ben.jsonl"), "client": "ben", "empty": "skip"}
    anna = {"path": str(tmp_path / "data" / "anna.jsonl"), "client": "anna"}
    federation = {"rounds": 1, "targets": "raw"}
    found = setting(
        tmp_path, model, rows,
        data={"sources": [anna, source]}, federation=federation, model={"max_length": 97},
    )  # fmt: skip
    lines = words(found)
    assert [line.partition(":")[0] for line in lines] == ["skipped", "cut", "not judged"]
    assert lines[0] == (
        "skipped: 1 of 2 rows of ben.jsonl: ben.jsonl:2, no response (column 'response' is empty)"
    )
    said = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["check", str(tmp_path / "recipe.toml")])
    assert said.stdout.splitlines()[-3:] == lines
    done = CliRunner().invoke(
        app, ["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0
    assert [line for line in done.stderr.splitlines() if line in lines] == lines
    stored = json.loads((tmp_path / "out" / NOTICES_FILE).read_text())
    assert [str(Notice(**each)) for each in stored] == lines
    skipped = (tmp_path / "out" / SKIPPED_FILE).read_text().splitlines()
    reason = "no response (column 'response' is empty)"
    assert [json.loads(row) for row in skipped] == [{"place": "ben.jsonl:2", "reason": reason}]
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert all(each["words"] in page for each in stored)


def test_a_run_says_how_many_records_keep_their_raw_responses():
    def done(reasons: str) -> list[Rewritten]:
        records = [Record((), "", origin=f"a:{i}") for i in range(len(reasons))]
        return [Rewritten(r, "", w.strip(), 1) for r, w in zip(records, reasons, strict=True)]

    [notice] = kept_raw({"anna": done("  x"), "ben": done("xx "), "cleo": done(" ")})
    kept = "3 of 7 records, whose raw responses stay (anna 1, ben 2; first a:2)"
    assert str(notice) == f"not rewritten: {kept}"
    assert kept_raw({"anna": done(" ")}) == []


def test_a_line_names_a_few_clients():
    names = {f"c{i}": ["a:1"] * (i + 1) for i in range(6)} | {"none": []}
    assert records_by_client(names) == "c0 1, c1 2, c2 3, c3 4 and 2 more; first a:1"
    assert records_by_client({"c": [""]}) == "c 1"
    assert name_items(["a", "b"]) == "a, b"
