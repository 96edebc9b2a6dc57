"""Runs on the English lab, of a random model: from a recipe to its summary."""

import json
from pathlib import Path

import pytest

from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.sites.init import client_ids, own_recipe
from fedsdr.recipe.load import load_recipe, override_recipe, parse_recipe
from fedsdr.workflows.prepare import prepare_client, prepare_run
from fedsdr.workflows.run import run_recipe
from support.english_recipe import english_tables

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
