"""The paper's recipes: planned from a configuration alone, and run in miniature."""

import json

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.data.sources import read_source
from fedsdr.recipe import load as recipes
from fedsdr.recipe.choices import read_options
from fedsdr.recipe.sections.data import Source
from fedsdr.workflows.run import run_recipe
from support.repository import REPOSITORY
from support.tiny_recipe import client_rows, word_tokenizer, write_model

RECIPES = REPOSITORY / "recipes"
DOMAINS = ("GENERAL", "CODE", "FINANCE", "MEDICINE", "MATHS")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Five local files of the fields that the hub's data sets have."""
    for k, name in enumerate(DOMAINS):
        each = [
            {"instruction": row["prompt"], "input": "", "output": row["response"]}
            for row in client_rows(k, 24)
        ]
        path = tmp_path / f"{name.lower()}.json"
        path.write_text(json.dumps(each))
        monkeypatch.setenv(name, str(path))
    return tmp_path


def test_the_plan_of_llama_2_7b_needs_no_weights(files, monkeypatch):
    folder = files / "llama"
    LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, max_position_embeddings=4096,
    ).save_pretrained(folder)  # fmt: skip
    word_tokenizer(["red"]).save_pretrained(folder)
    monkeypatch.setenv("LLAMA2", str(folder))
    before = sorted(files.rglob("*"))
    sets = ["data.split.clients=6", "federation.participation=0.4", "data.split.by=iid"]
    options = [part for each in sets for part in ("--set", each)]
    done = CliRunner().invoke(
        app,
        ["run", str(RECIPES / "paper_llama2_7b.toml"), "--dry-run", "--flops", "1e14", *options],
    )
    assert done.exit_code == 0, done.output
    assert "6,738,415,616 parameters" in done.output
    by_hand = 32 * 2 * 32 * (4096 + 4096)  # layers, q and v, rank, in + out
    assert f"LoRA: 64 layers, {by_hand:,} parameters a stream" in done.output
    assert "fedsdr" in done.output
    assert f"{4 * by_hand / 2**20:.3g} MiB" in done.output
    assert sorted(files.rglob("*")) == before


@pytest.mark.parametrize("name", ["paper_llama2_7b", "paper_small"])
def test_the_experiment_in_miniature(name, files, monkeypatch):
    folder = write_model(files / "model")
    monkeypatch.setenv("LLAMA2", str(folder))
    monkeypatch.setenv("SMALL_MODEL", str(folder))
    sets = [
        "federation.rounds=2", "data.split.clients=4", "data.split.by=iid", "local.batch_size=4",
        "local.micro_batch=2", "local.rectify_steps=1", "local.smooth_steps=1", "lora.rank=2",
        "federation.participation=0.5", "model.quantisation=none", "distill.min_tokens=2",
        'distill.prompt="{instruction} {response}"', "model.template=auto",
    ]  # fmt: skip
    sets += ["evaluate.limit=2", "distill.max_ratio=1"]
    recipe = recipes.load_recipe(RECIPES / f"{name}.toml", sets)
    summary = run_recipe(recipe, files / "run", Reporter(None))
    assert len(summary["methods"]) == 14
    assert (files / "run" / "global" / "adapter_model.safetensors").exists()
    config = json.loads((files / "run" / "global" / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.05


def test_the_recipes_name_what_they_need_without_the_environment(monkeypatch):
    for name in (*DOMAINS, "LLAMA2", "SMALL_MODEL"):
        monkeypatch.delenv(name, raising=False)
    big = recipes.load_recipe(RECIPES / "paper_llama2_7b.toml")
    assert big.model.path == "meta-llama/Llama-2-7b-hf"
    assert all(source.path.startswith("hub:") for source in big.data.sources)
    # config.py of OpenFedLLM: lora_dropout, fedopt_eta, fedopt_tau, fedopt_beta1, fedopt_beta2.
    assert big.lora.dropout == 0.05
    adaptive = {"lr": 1e-3, "tau": 1e-3, "beta1": 0.9, "beta2": 0.99}
    for name in ("fedadam", "fedyogi"):
        assert read_options(name, big.options[name]).model_dump() == adaptive
    wanted = {"lr": 1e-3, "tau": 1e-3, "beta1": 0.0}
    assert read_options("fedadagrad", big.options["fedadagrad"]).model_dump() == wanted
    wanted = {"lr": 1.0, "momentum": 0.9, "dampening": 0.9}
    assert read_options("fedavgm", big.options["fedavgm"]).model_dump() == wanted
    small = recipes.load_recipe(RECIPES / "paper_small.toml")
    assert small.model.path == "HuggingFaceTB/SmolLM2-135M"
    assert {*recipes.recipe_differences(big, small)} == {
        "model.path", "model.quantisation", "model.gradient_checkpointing",
        "distill.batch_size",
    }  # fmt: skip


def test_a_data_set_by_name(tmp_path, monkeypatch):
    """`load_dataset` on a local folder, which it takes as it takes a name."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    lines = [json.dumps({"instruction": f"say {k}", "output": f"it is {k}"}) for k in range(5)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    found = read_source(Source(path=f"hub:{folder}"), 0).records
    assert [record.response for record in found] == [f"it is {k}" for k in range(5)]


def test_a_data_set_that_is_nowhere(tmp_path):
    with pytest.raises(UserError, match=r"cannot load the split 'train' of the data set"):
        read_source(Source(path=f"hub:{tmp_path}/nothing"), 0)
