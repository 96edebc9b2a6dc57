"""Finished runs opened again: every model of a run, as training left it."""

import math

import pytest
import torch

from fedsdr.core.errors import UserError
from fedsdr.core.files import read_json
from fedsdr.core.layout import DELIVERED_FILE, PERSONAL_FILE, RESULT_FILE
from fedsdr.core.progress import silent_reporter
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.finished import Finished, Models, open_finished
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run import compare_seeds, run_recipe
from support import tiny_recipe, toy_clients

BASELINES = ["base", "fedavg", "fedex", "fedsa", "ditto", "local"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    recipe = load_recipe(tiny_recipe.write_recipe(place), [f"baselines={BASELINES}"])
    run_recipe(recipe, place / "out", silent_reporter())
    return place / "out"


def test_every_model_of_a_run_has_a_name(folder):
    clients = [f"client:{name}" for name in toy_clients.CLIENTS]
    assert open_finished(folder).model_names() == [
        "base", "fedavg", "fedex",
        *(f"fedsa/{client}" for client in clients),
        "ditto", *(f"ditto/{client}" for client in clients),
        *(f"local/{client}" for client in clients),
        "global", *clients,
    ]  # fmt: skip


def test_an_opened_model_has_the_held_out_loss_that_the_run_reported(folder):
    finished = open_finished(folder)
    models = Models(finished, silent_reporter())
    evaluator = prepare_run(finished.recipe).load(silent_reporter()).evaluator
    evaluator.model = models.base.model
    for name in finished.model_names()[1:]:
        models.use(name)
        place, client = finished.place(name)
        if client:
            expected = read_json(place / PERSONAL_FILE)[client]["loss"]
            found = evaluator.personal_model(client)["loss"].value
        else:
            expected = read_json(place / RESULT_FILE)["loss"]
            found = evaluator.global_model()["loss"].value
        assert found == pytest.approx(expected, abs=1e-6), name


def test_adapters_are_digested_once_a_model(folder, monkeypatch):
    models, looks = Models(open_finished(folder), silent_reporter()), []
    plain = Finished.adapters
    monkeypatch.setattr(
        Finished, "adapters", lambda run, name: looks.append(name) or plain(run, name)
    )
    assert models.identity("global") == models.identity("global")
    assert looks == ["global"]
    assert models.identity("client:anna") != models.identity("global")


def test_the_base_model_comes_back(folder):
    finished = open_finished(folder)
    models = Models(finished, silent_reporter())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = models.base.model(ids).logits
        models.use("client:anna")
        other = models.base.model(ids).logits
        models.use("base")
        after = models.base.model(ids).logits
    assert torch.equal(before, after)
    assert not torch.equal(before, other)
    assert math.isfinite(float(other.sum()))


@pytest.mark.parametrize("name", ["nobody", "client:nobody", "fedavg/client:anna", "fedsa", ""])
def test_a_model_that_is_not_there_is_named_with_those_that_are(folder, name):
    with pytest.raises(UserError, match=r"no model .* choose from base, fedavg, "):
        open_finished(folder).adapters(name)


def test_what_is_not_a_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        open_finished(tmp_path)
    recipe = load_recipe(tiny_recipe.write_recipe(tmp_path), ["federation.rounds=1"])
    compare_seeds(recipe, [0, 1], tmp_path / "both", silent_reporter())
    with pytest.raises(UserError, match=r"comparison of several runs: give one .*seed-0"):
        open_finished(tmp_path / "both")
    done = tmp_path / "both" / "seed-0"
    for file in (RESULT_FILE, DELIVERED_FILE):
        (done / file).unlink()
    with pytest.raises(UserError, match=r"not finished \('fedsdr' is not\)"):
        open_finished(done)
