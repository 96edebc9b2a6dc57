"""Whole runs of a tiny model: what the folder holds, that it is right, and that it repeats."""

import json
import math
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedsdr.algorithms.contract import Personal
from fedsdr.core.adapters import Adapter
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.export.write import ExportChoice, export_model
from fedsdr.federation import rounds
from fedsdr.federation.in_process import InProcess
from fedsdr.recipe.load import load_recipe, override_recipe, parse_recipe, to_toml
from fedsdr.recipe.methods import named_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.training.store import ClientStore
from fedsdr.workflows import method as method_run
from fedsdr.workflows import run as runs
from fedsdr.workflows import summary
from fedsdr.workflows.finished import open_finished
from fedsdr.workflows.method import client_examples, pooled_recipe
from fedsdr.workflows.prepare import Setting, prepare_run
from fedsdr.workflows.run import compare_seeds, run_demo, run_recipe, say_kept
from fedsdr.workflows.run_folder import check_folder
from support import tiny_recipe, toy_clients

# PEFT asks for an attribute that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

BASELINES = ["base", "fedavg", "fedsd", "local", "central"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with model, data and recipe.toml, and the cache of all runs of this module."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        tiny_recipe.write_recipe(folder)
        yield folder


@pytest.fixture(scope="module")
def recipe(home: Path) -> Recipe:
    return load_recipe(home / "recipe.toml")


@pytest.fixture(scope="module")
def finished(home: Path, recipe: Recipe) -> Path:
    """A run with baselines, to look at and not to touch."""
    out = home / "finished"
    run_recipe(override_recipe(recipe, {"baselines": BASELINES}), out, silent_reporter())
    return out


def weights(folder: Path) -> Adapter:
    return load_file(folder / WEIGHTS)


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def timeless_log(folder: Path) -> list[Any]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{**row, "train": {**row.get("train", {}), "seconds": 0}} for row in rows]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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
    assert {*contents(finished)} == expected


def test_what_clients_keep_is_readable_by_its_owner_alone(finished):
    for path in finished.rglob("clients/*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = [p for p in finished.rglob("clients/*/**/*") if p.is_file()]
    assert len(files) == 3 * (4 + 3 + 1)  # of fedsdr, local, fedsd
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_partition_says_who_holds_what(finished):
    held = [
        (row["name"], row["records"], row["held_out"]) for row in read(finished / "partition.json")
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
    found = read(finished / "environment.json")
    assert {"fedsdr", "python", "torch", "transformers", "seed", "started"} <= found.keys()
    assert found["seed"] == 0
    assert str(Path.home()) not in json.dumps(found)


def test_the_summary_covers_every_method(finished):
    summary = read(finished / "summary.json")
    assert (summary["kind"], summary["own"], summary["seeds"]) == ("run", "fedsdr", [0])
    assert [*summary["methods"]] == [*BASELINES, "fedsdr"]
    for name, scores in summary["methods"].items():
        folder = finished / summary["runs"][name][0]
        result = read(folder / "result.json")
        assert {metric: it["mean"] for metric, it in scores.items()} == result
        assert {it["n"] for it in scores.values()} == {1}
        assert {it["low"] for it in scores.values()} == {None}
        for client in toy_clients.CLIENTS:
            assert (f"loss/{client}" in result) == (name != "local")  # it has no global model
            assert (f"personal_loss/{client}" in result) == (name != "central")


# That it is right: the reported losses, computed anew from files alone


def held_out_loss(model: Any, tokenizer: Any, recipe: Recipe, clients: list[str]) -> float:
    """-log p per response token, record by record, with nothing but transformers."""
    total, count = 0.0, 0
    for client in prepare_run(recipe).clients:
        for record in client.held_out if client.name in clients else ():
            prompt = tokenizer(f"<user> {record.instruction} <assistant>")["input_ids"]
            answer = tokenizer(f"{record.response} <eos>")["input_ids"]
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                log_p = log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
            for position, token in enumerate(answer, start=len(prompt)):
                total -= float(log_p[position - 1, token])
            count += len(answer)
    return total / count


def base(home: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(home / "model").eval()
    return model, AutoTokenizer.from_pretrained(home / "model")


@pytest.mark.parametrize("name", [".", *(f"baselines/{n}" for n in BASELINES if n != "local")])
def test_peft_loads_the_global_model_and_finds_its_loss(home, recipe, finished, name):
    model, tokenizer = base(home)
    loaded = PeftModel.from_pretrained(model, finished / name / "global").eval()
    result = read(finished / name / "result.json")
    assert held_out_loss(loaded, tokenizer, recipe, [*toy_clients.CLIENTS]) == pytest.approx(
        result["loss"], abs=1e-5
    )
    for client in toy_clients.CLIENTS:
        found = held_out_loss(loaded, tokenizer, recipe, [client])
        assert found == pytest.approx(result[f"loss/{client}"], abs=1e-5)


def test_the_base_method_is_the_base_model(home, recipe, finished):
    model, tokenizer = base(home)
    loss = held_out_loss(model, tokenizer, recipe, [*toy_clients.CLIENTS])
    assert read(finished / "baselines/base/result.json")["loss"] == pytest.approx(loss, abs=1e-5)
    assert timeless_log(finished)[0]["eval"]["loss"] == pytest.approx(loss, abs=1e-5)


def merge(model: Any, adapter: Adapter, scaling: float) -> None:
    """W0 + (alpha/r) B A, written into the model's own weights."""
    for key, a in adapter.items():
        if ".lora_A." in key:
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = adapter[key.replace("lora_A", "lora_B")]
            with torch.no_grad():
                model.get_submodule(path).weight += scaling * (b @ a)


@pytest.mark.parametrize("client", toy_clients.CLIENTS)
@pytest.mark.parametrize(("name", "streams"), [(".", "RS"), ("baselines/local", "own")])
def test_personal_models_have_their_reported_loss(home, recipe, finished, client, name, streams):
    model, tokenizer = base(home)
    folder = finished / name
    if "R" in streams:
        merge(model, weights(folder / "global"), 4.0 / 2)
    place = "private" if "S" in streams else "personal"
    merge(model, weights(folder / "clients" / client / place), 4.0 / 2)
    result = read(folder / "result.json")
    loss = held_out_loss(model, tokenizer, recipe, [client])
    assert loss == pytest.approx(result[f"personal_loss/{client}"], abs=1e-5)
    assert read(folder / "personal.json")[client]["loss"] == result[f"personal_loss/{client}"]
    without = read(finished / ("baselines/base" if streams == "own" else name) / "result.json")
    assert loss != pytest.approx(without[f"loss/{client}"], abs=1e-4)


def test_adapters_name_their_layers_rank_and_base(home, finished):
    config = read(finished / "global" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (2, 4.0)
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    assert config["base_model_name_or_path"] == str((home / "model").resolve())
    layers = {key.split(".lora_")[0] for key in weights(finished / "global")}
    assert len(layers) == 2 * 2


def test_rewrites_are_recorded_record_by_record(finished):
    for client, records in zip(toy_clients.CLIENTS, (5, 7, 10), strict=True):
        lines = (finished / "clients" / client / "rewrites.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len({row["origin"] for row in rows}) == records
        assert all(row["text"] and row["source"] == "rewritten" for row in rows)
    summary = read(finished / "distillation.json")["clients"]
    assert [summary[client]["rewritten"] for client in toy_clients.CLIENTS] == [5, 7, 10]


# That it repeats


@pytest.mark.parametrize("name", ["fedavg", "fedsd", "local", "central"])
def test_a_baseline_is_that_method_run_alone(home, recipe, finished, name, tmp_path):
    run_recipe(named_recipe(name, recipe), tmp_path / "alone", silent_reporter())
    baseline, alone = finished / "baselines" / name, tmp_path / "alone"
    assert timeless_log(alone) == timeless_log(baseline)
    assert read(alone / "result.json") == read(baseline / "result.json")
    for path in baseline.rglob(WEIGHTS):
        assert same(path.parent, alone / path.parent.relative_to(baseline))


def test_the_own_method_does_not_depend_on_its_baselines(recipe, finished, tmp_path):
    run_recipe(recipe, tmp_path / "out", silent_reporter())
    assert same(tmp_path / "out" / "global", finished / "global")
    assert timeless_log(tmp_path / "out") == timeless_log(finished)


def test_the_same_seed_gives_the_same_bits_with_nothing_cached(
    recipe, finished, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "fresh"))
    torch.manual_seed(99)  # the global generator has no say
    run_recipe(recipe, tmp_path / "out", silent_reporter())
    assert (tmp_path / "fresh" / "rewrites.sqlite").exists()
    for path in [*finished.glob("global"), *finished.glob("clients/*/private")]:
        assert same(tmp_path / "out" / path.relative_to(finished), path)
    run_recipe(override_recipe(recipe, {"seed": 1}), tmp_path / "other", silent_reporter())
    assert not same(tmp_path / "other" / "global", finished / "global")


def test_a_comparison_has_intervals_over_its_seeds(recipe, tmp_path):
    both = override_recipe(recipe, {"baselines": ["fedavg"], "federation.rounds": 1})
    summary = compare_seeds(both, [4, 0], tmp_path / "out", silent_reporter())
    assert summary == read(tmp_path / "out" / "summary.json")
    assert (summary["kind"], summary["seeds"], summary["own"]) == ("compare", [4, 0], "fedsdr")
    assert summary["runs"] == {
        "fedavg": ["seed-4/baselines/fedavg", "seed-0/baselines/fedavg"],
        "fedsdr": ["seed-4", "seed-0"],
    }
    for name, folders in summary["runs"].items():
        results = [read(tmp_path / "out" / folder / "result.json") for folder in folders]
        for metric, found in summary["methods"][name].items():
            a, b = (result[metric] for result in results)
            half = 12.706204736432095 * abs(a - b) / 2  # t of one degree of freedom
            expected = {"n": 2, "mean": (a + b) / 2, "low": (a + b) / 2 - half}
            assert found == pytest.approx({**expected, "high": (a + b) / 2 + half}, rel=1e-9)
    assert (tmp_path / "out" / "report.html").exists()
    run_recipe(
        override_recipe(both, {"seed": 4, "baselines": []}), tmp_path / "alone", silent_reporter()
    )
    assert same(tmp_path / "alone" / "global", tmp_path / "out" / "seed-4" / "global")


def test_a_comparison_can_be_given_another_seed_later(recipe, tmp_path):
    short = override_recipe(named_recipe("fedavg", recipe), {"federation.rounds": 1})
    compare_seeds(short, [0], tmp_path / "out", silent_reporter())
    before = contents(tmp_path / "out" / "seed-0")
    summary = compare_seeds(short, [0, 1], tmp_path / "out", silent_reporter(), resume=True)
    assert contents(tmp_path / "out" / "seed-0") == before
    assert summary["methods"]["fedavg"]["loss"]["n"] == 2


# Unusual recipes


@pytest.mark.parametrize(
    "changes",
    [
        {"federation.rounds": 0},
        {"federation.rounds": 1, "evaluate.every": 0, "evaluate.personal": False},
        {"federation.participation": 0.3},
        {"data.held_out": 0},
        {"local.smoothing_state": "reset", "local.smoothing_context": "joint"},
        {"local.rectify_alone": 1.0, "local.batch_size": 100},
        {"lora.targets": "all-linear", "lora.rank": 64},
        {"distill.checks": ["empty", "truncated", "repetition"], "distill.attempts": 3},
        {"model.dtype": "bfloat16"},
        {"model.max_length": 8},
        {"federation.targets": "mixed"},
        {"federation.targets": "mixed", "federation.personalisation": "feddpa"},
        {"federation.late": 0.4, "federation.late_round": 2, "local.smoothing_state": "keep"},
        {"federation.late": 0.4, "federation.late_round": 9, "federation.algorithm": "scaffold"},
        {"local.smoothing_state": "decay", "local.stage_order": "rectify_first"},
        {
            "local.smoothing_targets": "raw",
            "local.rectify_targets": "distilled",
            "local.smoothing_context": "joint",
            "federation.lora_aggregation": "fedex",
        },
        {"distill.prefer": "shorter", "distill.attempts": 3, "distill.temperature": 1.0},
    ],
)
def test_unusual_recipes_run_and_their_adapters_load(home, recipe, tmp_path, changes):
    summary = run_recipe(override_recipe(recipe, changes), tmp_path / "out", silent_reporter())
    scores = summary["methods"][summary["own"]]
    assert ("loss" in scores) == (changes.get("data.held_out") != 0)
    assert all(math.isfinite(score["mean"]) for score in scores.values())
    PeftModel.from_pretrained(base(home)[0], tmp_path / "out" / "global")


@pytest.mark.parametrize("aggregation", ["fedsa", "fedper"])
@pytest.mark.parametrize("rounds", [0, 1])
def test_who_never_took_part_has_the_shared_part_alone(recipe, tmp_path, aggregation, rounds):
    changes = {"federation.lora_aggregation": aggregation, "federation.targets": "raw"}
    changes |= {"federation.rounds": rounds, "federation.participation": 0.3}
    run_recipe(override_recipe(recipe, changes), tmp_path / "out", silent_reporter())
    losses = read(tmp_path / "out" / "personal.json")
    took_part = [path.parent.name for path in tmp_path.glob("out/clients/*/personal")]
    assert (len(took_part), len(losses)) == (rounds, 3)
    assert all(math.isfinite(each["loss"]) for each in losses.values())


@pytest.mark.parametrize("state", ["keep", "reset", "decay"])
def test_the_private_stream_may_have_a_rank_of_its_own(home, recipe, tmp_path, state):
    out = tmp_path / "out"
    run_recipe(
        override_recipe(recipe, {"lora.smoothing_rank": 5, "local.smoothing_state": state}),
        out,
        silent_reporter(),
    )
    for client in toy_clients.CLIENTS:
        private = out / "clients" / client / "private"
        config = read(private / "adapter_config.json")
        assert (config["r"], config["lora_alpha"]) == (5, 5 * 4.0 / 2)
        PeftModel.from_pretrained(base(home)[0], private)
        model, tokenizer = base(home)
        merge(model, weights(out / "global"), 4.0 / 2)
        merge(model, weights(private), 4.0 / 2)
        loss = held_out_loss(model, tokenizer, recipe, [client])
        assert loss == pytest.approx(read(out / "personal.json")[client]["loss"], abs=1e-5)
    assert read(out / "global" / "adapter_config.json")["r"] == 2


def test_mixed_targets_are_the_responses_and_then_their_rewrites(home, recipe, tmp_path):
    mixed = override_recipe(recipe, {"federation.targets": "mixed"})
    bench = prepare_run(mixed).workbench(silent_reporter())
    examples = client_examples(bench, mixed, tmp_path, silent_reporter())
    for client, records in zip(toy_clients.CLIENTS, (5, 7, 10), strict=True):
        mine = examples[client]
        assert mine["mixed"] == [*mine["raw"], *mine["distilled"]]
        assert len(mine["raw"]) == len(mine["distilled"]) == records
    engine = InProcess(bench, mixed, examples, ClientStore(tmp_path), silent_reporter())
    assert engine.population() == 5 + 7 + 10


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"lab.clients": 1}, "federation.late = 0.4 leaves nobody for round 1 of 1 client"),
        (
            {"lab.clients": 4, "federation.robust": "krum", "options.krum": {"malicious": 1}},
            "needs at least 4 clients in a round, and 3 take part",
        ),
    ],
)
def test_those_who_come_late_must_leave_enough_to_begin_with(changes, part):
    late = {"federation.late": 0.4, "federation.late_round": 1}
    lab = override_recipe(parse_recipe({"model": {"path": "lab"}}), changes)
    prepare_run(lab)
    prepare_run(override_recipe(lab, {"federation.late": 0.4}))  # from round 1 on: nobody is late
    with pytest.raises(UserError, match=re.escape(part)):
        prepare_run(override_recipe(lab, late))


def test_nobody_distils_where_no_round_is_run(recipe, tmp_path):
    run_recipe(
        override_recipe(recipe, {"federation.rounds": 0}), tmp_path / "out", silent_reporter()
    )
    assert not (tmp_path / "out" / "distillation.json").exists()
    assert not (tmp_path / "out" / "clients").exists()


def test_a_variant_is_the_recipe_with_its_keys_changed(recipe, tmp_path):
    variants = {"brief": {"federation": {"rounds": 1}, "local": {"rectify_alone": 1.0}}}
    both = override_recipe(recipe, {"variants": variants, "baselines": ["brief"]})
    summary = run_recipe(both, tmp_path / "both", silent_reporter())
    changed = override_recipe(recipe, {"federation.rounds": 1, "local.rectify_alone": 1.0})
    run_recipe(changed, tmp_path / "alone", silent_reporter())
    brief = tmp_path / "both" / "baselines" / "brief"
    assert same(brief / "global", tmp_path / "alone" / "global")
    assert not same(brief / "global", tmp_path / "both" / "global")
    assert [*summary["methods"]] == ["brief", "fedsdr"]


# Folders


def test_resuming_a_finished_run_does_nothing_at_all(finished, recipe, monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Setting, "workbench", refuse)
    before = contents(finished)
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    chosen = override_recipe(recipe, {"baselines": BASELINES})
    summary = run_recipe(chosen, finished, silent_reporter(), resume=True)
    assert summary == read(finished / "summary.json")
    assert contents(finished) == before
    assert times == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_resume_in_a_new_folder_begins(recipe, tmp_path):
    short = override_recipe(recipe, {"federation.rounds": 0})
    run_recipe(short, tmp_path / "out", silent_reporter(), resume=True)
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_kill_before_the_recipe_was_in_place_leaves_the_folder_usable(recipe, tmp_path, resume):
    (tmp_path / ".recipe.toml.123.tmp").write_text("seed = ")
    run_recipe(
        override_recipe(recipe, {"federation.rounds": 0}),
        tmp_path,
        silent_reporter(),
        resume=resume,
    )
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"local.rectify_lr": 0.03}, ["local.rectify_lr"]),
        ({"seed": 1, "lora.rank": 3}, ["lora.rank", "seed"]),
        ({"baselines": ["base"]}, ["baselines"]),
        ({"evaluate.limit": 3}, ["evaluate.limit"]),
    ],
)
def test_another_recipe_cannot_resume_a_run(finished, recipe, changes, keys):
    before = contents(finished)
    other = override_recipe(recipe, {"baselines": BASELINES, **changes})
    with pytest.raises(UserError, match="another recipe") as caught:
        run_recipe(other, finished, silent_reporter(), resume=True)
    assert f"differ in {', '.join(keys)})" in str(caught.value)
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.name", "x"),
        ("deployment.round_seconds", 5.0),
        ("evaluate.every", 1),
        ("evaluate.personal", False),
        ("evaluate.benchmarks", ["crass"]),
        ("evaluate.benchmark_every", 1),
    ],
)
def test_what_changes_no_adapter_and_no_score_may_differ_at_a_resume(finished, recipe, key, value):
    check_folder(
        finished, override_recipe(recipe, {"baselines": BASELINES, key: value}), resume=True
    )


def test_where_claims_are_read_off_curves_their_points_stay(tmp_path):
    lab = parse_recipe({"model": {"path": "lab"}})
    (tmp_path / "recipe.toml").write_text(to_toml(lab))
    check_folder(tmp_path, override_recipe(lab, {"evaluate.personal": False}), resume=True)
    with pytest.raises(UserError, match=r"another recipe .*evaluate.every"):
        check_folder(tmp_path, override_recipe(lab, {"evaluate.every": 1}), resume=True)


def test_methods_that_were_judged_otherwise_are_named_at_a_resume(finished, recipe, monkeypatch):
    changes = {"baselines": BASELINES, "evaluate.benchmarks": ["crass"]}
    for changed, names in ((changes, "fedavg"), ({"baselines": BASELINES}, None)):
        said: list[str] = []
        other = override_recipe(recipe, changed)
        reporter = silent_reporter()
        monkeypatch.setattr(reporter, "say", said.append)
        say_kept(other, finished, reporter)
        assert len(said) == (names is not None)
        if names:
            assert "had done all rounds before evaluate.benchmarks was changed" in said[0]
            assert names in said[0]
            assert "fedsdr eval" in said[0]


def test_a_finished_run_reads_no_data_again(finished, recipe, monkeypatch):
    monkeypatch.setattr(runs, "prepare_run", broken)
    summary = run_recipe(
        override_recipe(recipe, {"baselines": BASELINES}), finished, silent_reporter(), resume=True
    )
    assert summary == read(finished / "summary.json")


def broken(*_: Any) -> None:
    raise MemoryError("put in by the test")


def last_one_breaks(due: Callable[..., Any]) -> Callable[..., Any]:
    def evaluations(deployed: Adapter, periodic: Any, round: int, rounds: int) -> Any:
        return broken() if round == rounds else due(deployed, periodic, round, rounds)

    return evaluations


@pytest.mark.parametrize("where", ["the global model", "the clients' models", "the report"])
def test_a_crash_in_the_last_evaluation_costs_no_model(
    recipe, finished, tmp_path, monkeypatch, where
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if where == "the global model":
            patch.setattr(rounds, "_evaluations", last_one_breaks(rounds._evaluations))
        elif where == "the clients' models":
            patch.setattr(method_run, "judge_personal", broken)
        else:
            patch.setattr(summary, "write_report", broken)
        with pytest.raises(MemoryError):
            run_recipe(recipe, out, silent_reporter())
    models = open_finished(out)
    assert models.model_names() == ["base", "global", *(f"client:{c}" for c in toy_clients.CLIENTS)]
    export_model(models, ExportChoice("client:anna"), tmp_path / "model", silent_reporter())
    folders = ["global", *(f"clients/{client}/private" for client in toy_clients.CLIENTS)]
    assert all(same(out / each, finished / each) for each in folders)
    run_recipe(
        override_recipe(recipe, {"evaluate.personal": False}), out, silent_reporter(), resume=True
    )
    assert all(same(out / each, finished / each) for each in folders)
    result = read(out / "result.json")
    assert ("personal_loss" in result) == (where == "the report")
    assert result["loss"] == read(finished / "result.json")["loss"]


def test_a_run_killed_between_two_clients_adapters_is_not_trained(
    recipe, finished, tmp_path, monkeypatch
):
    out, left = tmp_path / "out", ["anna"]
    written = method_run.write_personal

    def killed(own: Personal, engine: InProcess, client: str) -> None:
        if client not in left:
            raise KeyboardInterrupt
        written(own, engine, client)

    with monkeypatch.context() as patch:
        patch.setattr(method_run, "write_personal", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, out, silent_reporter())
    assert (out / "clients" / "anna" / "private").exists()
    with pytest.raises(UserError, match=r"not finished .*--resume"):
        open_finished(out)
    run_recipe(recipe, out, silent_reporter(), resume=True)
    names = ["base", "global", *(f"client:{c}" for c in toy_clients.CLIENTS)]
    assert open_finished(out).model_names() == names


def test_a_model_under_noise_is_not_handed_on_before_its_epsilon_is_known(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(method_run, "judge_personal", broken)
    privacy = {"privacy.mode": "local", "privacy.noise_multiplier": 1.0, "federation.rounds": 1}
    with pytest.raises(MemoryError):
        run_recipe(override_recipe(recipe, privacy), tmp_path / "out", silent_reporter())
    with pytest.raises(UserError, match="its epsilon is known: go on with"):
        export_model(
            open_finished(tmp_path / "out"), ExportChoice(), tmp_path / "model", silent_reporter()
        )
    assert not (tmp_path / "model").exists()


def test_a_run_does_not_go_on_with_other_data(recipe, tmp_path):
    short = override_recipe(recipe, {"federation.rounds": 0})
    run_recipe(short, tmp_path / "out", silent_reporter())
    (tmp_path / "out" / "report.html").unlink()  # as if it had been killed before its end
    source = Path(recipe.data.sources[0].path)
    before = source.read_text()
    try:
        source.write_text("".join(before.splitlines(keepends=True)[:-1]))
        with pytest.raises(UserError, match="the data have changed since"):
            run_recipe(short, tmp_path / "out", silent_reporter(), resume=True)
    finally:
        source.write_text(before)
    run_recipe(short, tmp_path / "out", silent_reporter(), resume=True)
    assert (tmp_path / "out" / "report.html").exists()


def test_a_resumed_comparison_clears_what_a_killed_one_left(recipe, tmp_path):
    short = override_recipe(recipe, {"federation.rounds": 0})
    compare_seeds(short, [0], tmp_path / "out", silent_reporter())
    left = tmp_path / "out" / ".summary.json.123.tmp"
    left.write_text("{")
    compare_seeds(short, [0], tmp_path / "out", silent_reporter(), resume=True)
    assert not left.exists()


@pytest.mark.parametrize(("targets", "own"), [("raw", "fedavg"), ("two_stream", "fedsdr")])
def test_only_a_recipe_of_two_streams_stands_for_fedsdr(
    recipe, tmp_path, monkeypatch, targets, own
):
    asked = []
    monkeypatch.setattr(summary, "judge_claims", lambda runs, fedsdr, curves: asked.append(fedsdr))
    other = {"raw": "fedsdr", "two_stream": "fedavg"}[targets]
    changes = {"federation.rounds": 1, "federation.targets": targets, "baselines": [other]}
    assert (
        run_recipe(override_recipe(recipe, changes), tmp_path / "out", silent_reporter())["own"]
        == own
    )
    assert asked == ["fedsdr"]


def test_a_resumed_run_remembers_when_it_began(recipe, tmp_path):
    short = override_recipe(recipe, {"federation.rounds": 0})
    run_recipe(short, tmp_path / "out", silent_reporter())
    page = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    environment = read(tmp_path / "out" / "environment.json") | {"started": "long ago"}
    (tmp_path / "out" / "environment.json").write_text(json.dumps(environment))
    assert "<dt>Duration</dt>" in page
    run_recipe(short, tmp_path / "out", silent_reporter(), resume=True)
    assert read(tmp_path / "out" / "environment.json") == environment
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<dt>Duration since resumed</dt>" in page


@pytest.mark.parametrize(("share", "steps"), [(1.0, 3), (0.5, 2), (0.1, 1)])
def test_centralised_training_takes_as_many_steps_as_all_participants(recipe, share, steps):
    late = {"federation.late": 0.4, "federation.late_round": 2}
    some = override_recipe(
        named_recipe("central", recipe), {"federation.participation": share, **late}
    )
    pooled = pooled_recipe(some, clients=3)
    assert pooled.local.rectify_steps == steps * some.local.rectify_steps
    assert (pooled.federation.participation, pooled.federation.late) == (1, 0)


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_anything_in_it_is_refused_and_untouched(recipe, tmp_path, resume):
    (tmp_path / "notes.txt").write_text("mine")
    for start in (run_recipe, lambda *args: compare_seeds(args[0], [0], *args[1:])):
        with pytest.raises(UserError, match="is not empty and nothing is written over") as caught:
            start(recipe, tmp_path, silent_reporter(), resume)
        assert "--resume" not in str(caught.value)
        assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_run_is_not_written_over_without_resume(finished, recipe):
    before = contents(finished)
    with pytest.raises(UserError, match="go on with it by --resume, or give another --out"):
        run_recipe(override_recipe(recipe, {"baselines": BASELINES}), finished, silent_reporter())
    assert contents(finished) == before


def test_the_demo_replaces_no_run_but_its_own(finished):
    before = contents(finished)
    with pytest.raises(UserError, match="another recipe"):
        run_demo(finished, [0], silent_reporter())
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"lora.targets": ["nope"]}, "lora.targets names 'nope'"),
        ({"baselines": ["base", "base"]}, "would run 'base' twice"),
        ({"baselines": ["fedsdr"]}, "would run 'fedsdr' twice"),
        ({"baselines": ["fed"]}, "baselines names 'fed'"),
        ({"variants": {"v": {"lora": {"rank": 3}}}}, "variants.v changes lora.rank"),
        ({"variants": {"fedavg": {}}}, "variants.fedavg has the name of a method"),
        ({"variants": {"v": {"seed": 3}}}, "variants.v changes seed"),
        ({"variants": {"v": {"evaluate": {"limit": 3}}}}, "variants.v changes evaluate.limit"),
        ({"variants": {"v": {"local": {"lr": 3}}}}, "local.lr: unknown key"),
        ({"model.max_length": 1}, "no record fits into 1 tokens"),
    ],
)
def test_recipes_that_are_refused_leave_no_folder(recipe, tmp_path, changes, part):
    with pytest.raises(UserError) as caught:
        run_recipe(override_recipe(recipe, changes), tmp_path / "out", silent_reporter())
    assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_run_can_be_moved_and_reported_again(finished, tmp_path):
    from fedsdr.report.html import write_report

    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    (moved / "report.html").unlink()
    write_report(moved)
    assert (moved / "report.html").stat().st_size > 1000
