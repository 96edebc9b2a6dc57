"""Whole runs of a tiny model: what the folder holds, that it is right, and that it repeats."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from fedsdr.core.progress import silent_reporter
from fedsdr.data.partition import read_clients
from fedsdr.data.records import ClientData
from fedsdr.data.sources import SourceRecords
from fedsdr.recipe import methods
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.methods import named_recipe
from fedsdr.recipe.sections.data import Data
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows import method as method_run
from fedsdr.workflows import prepare
from fedsdr.workflows.live_report import LiveReport
from fedsdr.workflows.run import compare_seeds, run_recipe
from support import toy_clients
from support.finished_runs import (
    BASELINES,
    WEIGHTS,
    base_model,
    folder_contents,
    held_out_loss,
    merge_adapter,
    read_json,
    read_weights,
    same_weights,
    timeless_log,
)

# PEFT asks for an attribute that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def test_each_method_is_validated_and_built_once(recipe, tmp_path, monkeypatch):
    """The recipe is resolved when it is prepared: from there on methods are handed down. Central
    training is built twice, since its steps follow from the number of clients."""
    chosen = override_recipe(recipe, {"baselines": BASELINES, "federation.rounds": 1})
    validated: list[Any] = []
    built: list[Recipe] = []
    validate, build = Recipe.model_validate, methods.build_algorithm

    def counted(each: Recipe, *rest: Any, **named: Any) -> Any:
        built.append(each)
        return build(each, *rest, **named)

    def noted(tables: Any) -> Recipe:
        validated.append(tables)
        return validate(tables)

    monkeypatch.setattr(Recipe, "model_validate", noted)
    for module in (methods, method_run):
        monkeypatch.setattr(module, "build_algorithm", counted)
    # The live report knows the run by its folder alone, as whoever opens it later.
    monkeypatch.setattr(LiveReport, "observe", lambda *_: None)
    run_recipe(chosen, tmp_path / "out", silent_reporter())
    assert len(validated) == len(BASELINES)
    assert len(built) == len(BASELINES) + 1 + 1
    assert [each.federation.pooled for each in built].count(True) == 2


# What a run leaves behind


def promised(targets: str, clients: bool = True) -> set[str]:
    """The files of one method, as `fedsdr.workflows.run_folder` says."""
    names = {
        "recipe.toml",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "delivered.json",
        "personal.json",
        "result.json",
    }
    if targets != "local":
        names |= {f"global/{name}" for name in (WEIGHTS, "adapter_config.json")}
    if targets in ("distilled", "two_stream"):
        names |= {"distillation.json"} | {
            f"clients/{c}/rewrites.jsonl" for c in toy_clients.CLIENTS
        }
    if targets in ("local", "two_stream"):
        place = "personal" if targets == "local" else "private"  # its own R, or S
        each = ["state-000003.safetensors", f"{place}/{WEIGHTS}", f"{place}/adapter_config.json"]
        names |= {f"clients/{client}/{name}" for client in toy_clients.CLIENTS for name in each}
    return names


def test_the_folder_holds_exactly_what_is_promised(finished):
    expected = promised("two_stream") | {
        "environment.json", "notices.json", "partition.json", "summary.json", "report.html",
    }  # fmt: skip
    kinds = ["raw", "raw", "distilled", "local", "raw"]
    for name, kind in zip(BASELINES, kinds, strict=True):
        expected |= {f"baselines/{name}/{file}" for file in promised(kind)}
    assert {*folder_contents(finished)} == expected


def test_what_clients_keep_is_readable_by_its_owner_alone(finished):
    for path in finished.rglob("clients/*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = [p for p in finished.rglob("clients/*/**/*") if p.is_file()]
    assert len(files) == 3 * (4 + 3 + 1)  # of fedsdr, local, fedsd
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_partition_says_who_holds_what(finished):
    held = [
        (row["name"], row["records"], row["held_out"])
        for row in read_json(finished / "partition.json")
    ]
    assert held == [("anna", 5, 1), ("ben", 7, 2), ("cleo", 10, 2)]


def test_the_recipe_in_the_folder_repeats_the_run(finished, recipe):
    assert load_recipe(finished / "recipe.toml") == override_recipe(
        recipe, {"baselines": BASELINES}
    )
    for name in BASELINES:
        kept = load_recipe(finished / "baselines" / name / "recipe.toml")
        assert kept == named_recipe(name, recipe)


def test_the_environment_names_versions_and_nothing_private(finished):
    found = read_json(finished / "environment.json")
    assert {"fedsdr", "python", "torch", "transformers", "seed", "started"} <= found.keys()
    assert found["seed"] == 0
    assert str(Path.home()) not in json.dumps(found)


def test_the_summary_covers_every_method(finished):
    summary = read_json(finished / "summary.json")
    assert (summary["kind"], summary["own"], summary["seeds"]) == ("run", "fedsdr", [0])
    assert [*summary["methods"]] == [*BASELINES, "fedsdr"]
    for name, scores in summary["methods"].items():
        folder = finished / summary["runs"][name][0]
        result = read_json(folder / "result.json")
        assert {metric: it["mean"] for metric, it in scores.items()} == result
        assert {it["n"] for it in scores.values()} == {1}
        assert {it["low"] for it in scores.values()} == {None}
        for client in toy_clients.CLIENTS:
            assert (f"loss/{client}" in result) == (name != "local")  # it has no global model
            assert (f"personal_loss/{client}" in result) == (name != "central")


# That it is right: the reported losses, computed anew from files alone


@pytest.mark.parametrize("name", [".", *(f"baselines/{n}" for n in BASELINES if n != "local")])
def test_peft_loads_the_global_model_and_finds_its_loss(home, recipe, finished, name):
    model, tokenizer = base_model(home)
    loaded = PeftModel.from_pretrained(model, finished / name / "global").eval()
    result = read_json(finished / name / "result.json")
    assert held_out_loss(loaded, tokenizer, recipe, [*toy_clients.CLIENTS]) == pytest.approx(
        result["loss"], abs=1e-5
    )
    for client in toy_clients.CLIENTS:
        found = held_out_loss(loaded, tokenizer, recipe, [client])
        assert found == pytest.approx(result[f"loss/{client}"], abs=1e-5)


def test_the_base_method_is_the_base_model(home, recipe, finished):
    model, tokenizer = base_model(home)
    loss = held_out_loss(model, tokenizer, recipe, [*toy_clients.CLIENTS])
    assert read_json(finished / "baselines/base/result.json")["loss"] == pytest.approx(
        loss, abs=1e-5
    )
    assert timeless_log(finished)[0]["eval"]["loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("client", toy_clients.CLIENTS)
@pytest.mark.parametrize(("name", "streams"), [(".", "RS"), ("baselines/local", "own")])
def test_personal_models_have_their_reported_loss(home, recipe, finished, client, name, streams):
    model, tokenizer = base_model(home)
    folder = finished / name
    if "R" in streams:
        merge_adapter(model, read_weights(folder / "global"), 4.0 / 2)
    place = "private" if "S" in streams else "personal"
    merge_adapter(model, read_weights(folder / "clients" / client / place), 4.0 / 2)
    result = read_json(folder / "result.json")
    loss = held_out_loss(model, tokenizer, recipe, [client])
    assert loss == pytest.approx(result[f"personal_loss/{client}"], abs=1e-5)
    assert read_json(folder / "personal.json")[client]["loss"] == result[f"personal_loss/{client}"]
    without = read_json(finished / ("baselines/base" if streams == "own" else name) / "result.json")
    assert loss != pytest.approx(without[f"loss/{client}"], abs=1e-4)


def test_adapters_name_their_layers_rank_and_base(home, finished):
    config = read_json(finished / "global" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (2, 4.0)
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    assert config["base_model_name_or_path"] == str((home / "model").resolve())
    layers = {key.split(".lora_")[0] for key in read_weights(finished / "global")}
    assert len(layers) == 2 * 2


def test_rewrites_are_recorded_record_by_record(finished):
    for client, records in zip(toy_clients.CLIENTS, (5, 7, 10), strict=True):
        lines = (finished / "clients" / client / "rewrites.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len({row["origin"] for row in rows}) == records
        assert all(row["text"] and row["source"] == "rewritten" for row in rows)
    summary = read_json(finished / "distillation.json")["clients"]
    assert [summary[client]["rewritten"] for client in toy_clients.CLIENTS] == [5, 7, 10]


# That it repeats


@pytest.mark.parametrize("name", ["fedavg", "fedsd", "local", "central"])
def test_a_baseline_is_that_method_run_alone(home, recipe, finished, name, tmp_path):
    run_recipe(named_recipe(name, recipe), tmp_path / "alone", silent_reporter())
    baseline, alone = finished / "baselines" / name, tmp_path / "alone"
    assert timeless_log(alone) == timeless_log(baseline)
    assert read_json(alone / "result.json") == read_json(baseline / "result.json")
    for path in baseline.rglob(WEIGHTS):
        assert same_weights(path.parent, alone / path.parent.relative_to(baseline))


def test_the_own_method_does_not_depend_on_its_baselines(recipe, finished, tmp_path):
    run_recipe(recipe, tmp_path / "out", silent_reporter())
    assert same_weights(tmp_path / "out" / "global", finished / "global")
    assert timeless_log(tmp_path / "out") == timeless_log(finished)


def test_the_same_seed_gives_the_same_bits_with_nothing_cached(
    recipe, finished, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "fresh"))
    torch.manual_seed(99)  # the global generator has no say
    run_recipe(recipe, tmp_path / "out", silent_reporter())
    assert (tmp_path / "fresh" / "rewrites.sqlite").exists()
    for path in [*finished.glob("global"), *finished.glob("clients/*/private")]:
        assert same_weights(tmp_path / "out" / path.relative_to(finished), path)
    run_recipe(override_recipe(recipe, {"seed": 1}), tmp_path / "other", silent_reporter())
    assert not same_weights(tmp_path / "other" / "global", finished / "global")


def test_a_comparison_has_intervals_over_its_seeds(recipe, tmp_path):
    both = override_recipe(recipe, {"baselines": ["fedavg"], "federation.rounds": 1})
    summary = compare_seeds(both, [4, 0], tmp_path / "out", silent_reporter())
    assert summary == read_json(tmp_path / "out" / "summary.json")
    assert (summary["kind"], summary["seeds"], summary["own"]) == ("compare", [4, 0], "fedsdr")
    assert summary["runs"] == {
        "fedavg": ["seed-4/baselines/fedavg", "seed-0/baselines/fedavg"],
        "fedsdr": ["seed-4", "seed-0"],
    }
    for name, folders in summary["runs"].items():
        results = [read_json(tmp_path / "out" / folder / "result.json") for folder in folders]
        for metric, found in summary["methods"][name].items():
            a, b = (result[metric] for result in results)
            half = 12.706204736432095 * abs(a - b) / 2  # t of one degree of freedom
            expected = {"n": 2, "mean": (a + b) / 2, "low": (a + b) / 2 - half}
            assert found == pytest.approx({**expected, "high": (a + b) / 2 + half}, rel=1e-9)
    assert (tmp_path / "out" / "report.html").exists()
    run_recipe(
        override_recipe(both, {"seed": 4, "baselines": []}), tmp_path / "alone", silent_reporter()
    )
    assert same_weights(tmp_path / "alone" / "global", tmp_path / "out" / "seed-4" / "global")


def test_a_comparison_reads_the_data_of_each_seed_once(recipe, tmp_path, monkeypatch):
    read: list[int] = []

    def counted(data: Data, seed: int) -> tuple[list[SourceRecords], list[ClientData]]:
        read.append(seed)
        return read_clients(data, seed)

    monkeypatch.setattr(prepare, "read_clients", counted)
    short = override_recipe(named_recipe("base", recipe), {"evaluate.every": 0})
    compare_seeds(short, [4, 0], tmp_path / "out", silent_reporter())
    assert read == [4, 0]


def test_a_comparison_can_be_given_another_seed_later(recipe, tmp_path):
    short = override_recipe(named_recipe("fedavg", recipe), {"federation.rounds": 1})
    compare_seeds(short, [0], tmp_path / "out", silent_reporter())
    before = folder_contents(tmp_path / "out" / "seed-0")
    summary = compare_seeds(short, [0, 1], tmp_path / "out", silent_reporter(), resume=True)
    assert folder_contents(tmp_path / "out" / "seed-0") == before
    assert summary["methods"]["fedavg"]["loss"]["n"] == 2
