"""The demonstration on a given model."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.workflows.run import demo_recipe
from support.finished_runs import read_json
from support.tiny_recipe import write_model


def test_the_model_is_a_folder_that_is_there_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    assert demo_recipe("mine").model.path == str(tmp_path / "mine")
    assert demo_recipe("../else").model.path == str(tmp_path.parent / "else")
    assert demo_recipe("owner/name").model.path == "owner/name"
    assert demo_recipe().model.path == "lab"


def test_the_recipe_runs_the_methods_that_the_paper_compares():
    recipe = demo_recipe("owner/name")
    assert recipe.baselines == ("base", "fedavg", "fedsd", "fedsd_verified", "local")
    assert recipe.federation.targets == "two_stream"
    assert recipe.english is not None


def test_a_model_that_is_missing_is_one_line(tmp_path):
    args = ["demo", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "none") in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demo_runs_on_any_instruction_model(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    model = write_model(tmp_path / "model")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["demo", "--model", str(model), "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    summary = read_json(out / "summary.json")
    assert (summary["kind"], summary["own"], summary["seeds"]) == ("compare", "fedsdr", [0])
    methods = {"base", "fedavg", "fedsd", "fedsd_verified", "local", "fedsdr"}
    assert summary["methods"].keys() == methods
    known = {"client_facts", "changed_facts", "general", "hallucination", "inventions", "refusals"}
    assert all(known <= summary["methods"][name].keys() for name in methods - {"local"})
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "The base model was asked to rewrite 120 responses" in page
    assert "Still to come" not in page
