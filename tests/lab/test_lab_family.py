"""Every choice of every table, on raw, distilled and two-stream data, on the lab's real model.

The lab is shrunk until a method takes a tenth of a second: what is tested is that each trains,
aggregates, evaluates and writes what it promises, not how well.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fedsdr.algorithms.contract import Personal
from fedsdr.core.progress import silent_reporter
from fedsdr.federation.checkpoint import load_checkpoint
from fedsdr.federation.loaded import LoadedRun
from fedsdr.model.install import install_model
from fedsdr.recipe.load import parse_recipe
from fedsdr.recipe.methods import Method, named_recipe, resolve_methods
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.follow import Follower, tracked_method
from fedsdr.workflows.method import engine_in_process, train_method
from fedsdr.workflows.prepare import prepare_run
from support import algorithm_cases
from support.tiny_lab import ROUNDS, TABLES

# PEFT asks for an attribute that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, LoadedRun, Path]:
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder))
        recipe = parse_recipe(TABLES)
        loaded = prepare_run(recipe).load(silent_reporter())
    return recipe, loaded, folder


def trained(name: str, recipe: Recipe, loaded: LoadedRun, folder: Path) -> Method:
    """A method of the lab's recipe, trained into a folder."""
    [method] = resolve_methods(named_recipe(name, recipe))
    method, reporter = method.within(folder), silent_reporter()
    untracked = Follower({}, tracked_method(method, folder), reporter)
    train_method(method, engine_in_process(loaded, reporter), reporter, untracked)
    return method


@pytest.mark.parametrize("name", [*algorithm_cases.SOME, "central+fedprox"])
def test_every_method_runs_in_the_lab(lab, name, tmp_path, monkeypatch):
    recipe, run, folder = lab
    monkeypatch.setenv("FEDSDR_CACHE", str(folder))
    trained(name, recipe, run, tmp_path)

    result = json.loads((tmp_path / "result.json").read_text())
    has_global = not algorithm_cases.parts(name) & {"local", "fedsa", "fedper"}
    assert ("client_facts" in result) == has_global
    assert ("personal_client_facts" in result) == ("central" not in algorithm_cases.parts(name))
    assert all(math.isfinite(value) for value in result.values())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [*range(ROUNDS + 1)]
    assert ("aggregation/lost" in rows[-1]["train"]) == has_global
    assert (rows[-1]["train"]["bytes_up"] > 0) == ("local" not in algorithm_cases.parts(name))
    if has_global:
        moved = load_file(tmp_path / "global" / "adapter_model.safetensors")
        assert any(bool(tensor.any()) for key, tensor in moved.items() if "lora_B" in key)


@pytest.mark.parametrize("name", ["fedsdr+flora", "fedex", "flexlora+scaffold"])
def test_peft_loads_what_exact_aggregation_deploys(lab, name, tmp_path, monkeypatch):
    """Its ranks are not the recipe's; the model that is evaluated is the one that is written."""
    recipe, run, folder = lab
    monkeypatch.setenv("FEDSDR_CACHE", str(folder))
    method = trained(name, recipe, run, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(run.base.path)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        plain = base(ids).logits
        loaded = PeftModel.from_pretrained(base, tmp_path / "global").eval()(ids).logits
    assert float((loaded - plain).abs().max()) > 1e-5
    committed = load_checkpoint(tmp_path)
    assert committed is not None
    install_model(run.model, Personal(method.algorithm.deployed(committed[1])))
    with torch.no_grad():
        ours = run.base.model(ids).logits
    assert torch.allclose(ours, loaded, atol=1e-5)
