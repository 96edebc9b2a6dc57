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
from fedsdr.federation.workbench import Workbench
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.load import parse_recipe
from fedsdr.recipe.methods import named_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.method import run_method
from fedsdr.workflows.prepare import prepare_run
from support import algorithm_cases
from support.tiny_lab import ROUNDS, TABLES

# PEFT asks for an attribute that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Workbench, Path]:
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder))
        recipe = parse_recipe(TABLES)
        bench = prepare_run(recipe).workbench(silent_reporter())
    return recipe, bench, folder


@pytest.mark.parametrize("name", [*algorithm_cases.SOME, "central+fedprox"])
def test_every_method_runs_in_the_lab(lab, name, tmp_path, monkeypatch):
    recipe, bench, folder = lab
    monkeypatch.setenv("FEDSDR_CACHE", str(folder))
    run_method(bench, named_recipe(name, recipe), tmp_path, name, silent_reporter())

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
    recipe, bench, folder = lab
    monkeypatch.setenv("FEDSDR_CACHE", str(folder))
    run_method(bench, named_recipe(name, recipe), tmp_path, name, silent_reporter())
    base = AutoModelForCausalLM.from_pretrained(bench.base.path)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        plain = base(ids).logits
        loaded = PeftModel.from_pretrained(base, tmp_path / "global").eval()(ids).logits
    assert float((loaded - plain).abs().max()) > 1e-5
    committed = load_checkpoint(tmp_path)
    assert committed is not None
    each = named_recipe(name, recipe)
    bench.use(Personal(build_algorithm(each).deployed(committed[1])))
    with torch.no_grad():
        ours = bench.base.model(ids).logits
    assert torch.allclose(ours, loaded, atol=1e-5)
