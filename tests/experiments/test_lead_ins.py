"""General knowledge by the words that an answer begins with."""

import pytest

from experiments.lead_ins import knowledge_by_lead_in
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.lab.english.evaluate import LEAD_IN
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.run import run_recipe
from support.english_recipe import english_tables
from support.tiny_recipe import write_recipe


def test_with_the_metrics_own_beginning_it_is_the_metric(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe({**english_tables(tmp_path), "baselines": ["base", "fedavg"]})
    run_recipe(recipe, tmp_path / "run", silent_reporter())
    rows = list(knowledge_by_lead_in(tmp_path / "run", (LEAD_IN, "")))
    assert [(row.model, row.lead_in) for row in rows] == [
        (model, lead_in) for model in ("base", "fedavg", "global") for lead_in in (LEAD_IN, "")
    ]
    for row, method in zip(rows[::2], ("base", "fedavg", "fedsdr"), strict=True):
        done = files.read_json(tmp_path / "run" / "summary.json")["methods"][method]
        assert row.right == pytest.approx(done["general"]["mean"])
        assert row.kept == pytest.approx(done["general_kept"]["mean"])


def test_a_run_on_other_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(write_recipe(tmp_path, federation={"rounds": 1}))
    run_recipe(recipe, tmp_path / "run", silent_reporter())
    with pytest.raises(UserError, match="not on the English lab"):
        next(knowledge_by_lead_in(tmp_path / "run"))
