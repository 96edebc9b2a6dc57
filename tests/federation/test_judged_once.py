"""The base model, with which every method begins, is judged once in a run."""

import torch

from fedsdr.core.progress import silent_reporter
from fedsdr.model.install import first_adapter
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.prepare import prepare_run
from support.tiny_recipe import write_recipe


def test_a_model_that_is_the_base_is_judged_once_and_any_other_each_time(tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe(tmp_path))
    loaded = prepare_run(recipe).load(silent_reporter())
    real, calls = loaded.evaluator.global_model, []
    monkeypatch.setattr(loaded.evaluator, "global_model", lambda: calls.append(1) or real())
    start = first_adapter(loaded.model, recipe.seed)
    base = loaded.judge(start)
    assert loaded.judge({}) == loaded.judge(start) == base
    assert len(calls) == 1
    moved = {key: tensor + 0.1 * torch.ones_like(tensor) for key, tensor in start.items()}
    assert loaded.judge(moved) != base
    loaded.judge(moved)
    assert len(calls) == 3
    assert loaded.judge(start) == base
    # One client's judge goes by that client's records.
    client = loaded.clients[0].name
    assert loaded.of(client).judge(start)["loss"].weight < base["loss"].weight
