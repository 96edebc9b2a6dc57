"""Runs on the English lab, of a random model: from a recipe to its summary."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.sites.init import client_ids, own_recipe
from fedsdr.distillation import rewrite
from fedsdr.generation.sampling import Job, Stop, stop_tokens
from fedsdr.recipe.load import load_recipe, override_recipe, parse_recipe
from fedsdr.workflows.prepare import prepare_client, prepare_run
from fedsdr.workflows.run import run_recipe
from support.english_recipe import english_tables
from support.tiny_recipe import WORDS, word_tokenizer

EXACT = {
    "client_facts", "changed_facts", "general", "general_kept", "hallucination", "inventions",
    "refusals", "house_style", "length",
}  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return english_tables(tmp_path_factory.mktemp("english"), changed=0.34)


def test_a_run_on_the_english_lab_is_judged_by_its_exact_metrics(tables, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe({**tables, "baselines": ["base", "fedavg", "fedsd_verified"]})
    run_recipe(recipe, tmp_path / "run", silent_reporter())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["methods"]) == {"base", "fedavg", "fedsd_verified", "fedsdr"}
    for name, metrics in summary["methods"].items():
        assert metrics.keys() >= EXACT | {f"personal_{each}" for each in EXACT}, name
    assert summary["methods"]["base"]["general_kept"]["mean"] == 100
    assert any("equal client facts" in each["claim"] for each in summary["claims"])


def test_verified_rewrites_are_those_that_state_the_gold_answer(tables, tmp_path, monkeypatch):
    """Of a model that rewrites every other record with the answer to another question."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    records = [r for c in prepare_run(load_recipe(tables)).clients for r in c.train]
    golds = [record.answer for record in records]
    right = {record.instruction: place % 2 == 0 for place, record in enumerate(records)}
    others = [next(g for g in golds if g != gold) for gold in golds]
    written = {
        record.instruction: f"it is {gold if right[record.instruction] else other}"
        for record, gold, other in zip(records, golds, others, strict=True)
    }
    known = {word for r in records for text in (r.instruction, r.response, r.answer)
             for word in text.split()}  # fmt: skip
    words = sorted({*known, "it"} - {*WORDS})
    model = english_tables(tmp_path, words)["model"]
    tokenizer = word_tokenizer([*WORDS, *words])

    def generate(model: Any, jobs: list[Job], stop: Stop, *options: Any) -> list[list[int]]:
        asked = [tokenizer.decode(job.prompt) for job in jobs]
        texts = [next(text for key, text in written.items() if key in each) for each in asked]
        return [[*tokenizer(text)["input_ids"], min(stop_tokens(stop))] for text in texts]

    monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", generate)
    methods = {"baselines": ["fedsd_verified"], "federation": {"rounds": 1, "targets": "distilled"}}
    run_recipe(load_recipe({**tables, **methods, "model": model}), tmp_path / "run",
               silent_reporter())  # fmt: skip

    def learnt(folder: Path) -> list[dict[str, Any]]:
        return [row for path in sorted(folder.glob("clients/*/rewrites.jsonl"))
                for row in files.read_json_lines(path)]  # fmt: skip

    assert sorted(row["text"] for row in learnt(tmp_path / "run")) == sorted(written.values())
    verified = learnt(tmp_path / "run" / "baselines" / "fedsd_verified")
    kept = [row["text"] for row in verified if not row["reason"]]
    assert sorted(kept) == sorted(written[key] for key, fine in right.items() if fine)
    raw = [row for row in verified if row["reason"]]
    assert {row["reason"] for row in raw} == {"wrong_answer"}
    assert sorted(row["text"] for row in raw) == sorted(
        record.response for record in records if not right[record.instruction]
    )


def test_a_client_of_a_deployment_holds_its_own_facts(tables):
    recipe = load_recipe(tables)
    assert client_ids(recipe, []) == ["clinic", "bank"]
    mine = own_recipe(recipe, "bank")
    run = prepare_client(mine, "bank")
    assert run.clients == [prepare_run(recipe).clients[1]]


def test_worlds_differ_by_the_runs_seed_unless_they_have_one(tables):
    recipe = load_recipe(tables)
    again = override_recipe(recipe, {"seed": 1})
    assert prepare_run(recipe).clients != prepare_run(again).clients
    fixed = override_recipe(recipe, {"english.seed": 0})
    assert prepare_run(fixed).clients == prepare_run(override_recipe(fixed, {"seed": 1})).clients


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"path": "lab"}}, ["any model but the lab's", "set model.path"]),
        ({"data": {"sources": [{"path": "a.jsonl"}]}}, ["[english] brings its own data"]),
        ({"english": {"fact": 3}}, ["english.fact: unknown key", "known keys: seed, clients"]),
        ({"english": {"changed": 1.5}}, ["english.changed = 1.5"]),
    ],
)
def test_what_does_not_go_with_the_english_lab_is_an_error(change, said):
    with pytest.raises(UserError) as caught:
        parse_recipe({"model": {"path": "m"}, "english": {}, **change})
    assert all(part in str(caught.value) for part in said)


def test_keys_of_an_absent_section_can_be_set(tmp_path):
    path = Path(tmp_path / "recipe.toml")
    path.write_text('model.path = "m"\n')
    recipe = load_recipe(path, ["english.clients=3"])
    assert recipe.english is not None
    assert recipe.english.clients == 3
    assert recipe.world is recipe.english
