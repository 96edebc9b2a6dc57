"""Runs from Python: their tables, their models as transformers and PEFT have them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

import fedsdr
from fedsdr.core.progress import silent_reporter
from fedsdr.workflows.finished import Models, open_finished
from support import tiny_recipe, toy_clients
from support.chat_server import serving
from support.repository import REPOSITORY

IDS = torch.tensor([[6, 7, 8, 9]])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with model, data and recipe.toml, and the cache of all runs of this module."""
    folder = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        tiny_recipe.write_recipe(folder, federation={"rounds": 2, "targets": "two_stream"})
        yield folder


@pytest.fixture(scope="module")
def run(home: Path) -> fedsdr.Run:
    """FedSDR and FedAvg, for tests that do not change the folder."""
    recipe = fedsdr.load_recipe(home / "recipe.toml", {"baselines": ["fedavg"]})
    return fedsdr.run(recipe, home / "out", progress=False)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_four_lines_of_the_readme(home, monkeypatch, capsys):
    [lines] = re.findall(
        r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text("utf-8"), re.DOTALL
    )
    assert len([line for line in lines.splitlines() if line.strip()]) == 4
    monkeypatch.chdir(home)
    (home / "my.toml").write_bytes((home / "recipe.toml").read_bytes())
    names: dict[str, Any] = {}
    exec(lines, names)
    printed = capsys.readouterr()
    assert "'method': 'fedsdr'" in printed.out
    assert "rounds (2)" in printed.err  # how far it is
    assert isinstance(names["model"], PeftModel)
    assert names["tokenizer"].decode(IDS[0])


def test_metrics_are_a_row_for_each_method(run):
    rows = {row["method"]: row for row in run.metrics()}
    assert list(rows) == run.methods == ["fedavg", "fedsdr"]
    assert rows["fedsdr"] == {"method": "fedsdr", **read(run.folder / "result.json")}
    baseline = run.folder / "baselines" / "fedavg"
    assert rows["fedavg"] == {"method": "fedavg", **read(baseline / "result.json")}


def test_rounds_are_a_row_for_each_method_and_round(run):
    rows = run.rounds()
    assert [(row["method"], row["round"]) for row in rows] == [
        (method, number) for method in ("fedavg", "fedsdr") for number in range(3)
    ]
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert rows[-1]["train/loss/rectify"] == last["train"]["loss/rectify"]
    assert rows[-1]["eval/loss"] == last["eval"]["loss"]
    assert {*rows[-1]["clients"]} == {*toy_clients.CLIENTS}
    assert "eval/loss" not in rows[1]  # every second round


def test_clients_are_a_row_for_each_model_of_their_own(run):
    rows = [row for row in run.clients() if row["method"] == "fedsdr"]
    assert [row["client"] for row in rows] == list(toy_clients.CLIENTS)
    known = read(run.folder / "personal.json")
    assert all(row["loss"] == known[row["client"]]["loss"] for row in rows)


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "global", "client:anna", "fedavg"])
def test_a_model_computes_what_the_runs_own_does(run, name):
    models = Models(open_finished(run.folder), silent_reporter())
    models.use(name)
    expected = models.base.model(input_ids=IDS).logits
    model, tokenizer = run.model(name, progress=False)
    assert isinstance(model, LlamaForCausalLM if name == "base" else PeftModel)
    merged, _ = run.model(name, merged=True, progress=False)
    assert isinstance(merged, LlamaForCausalLM)
    for each in (model, merged):
        assert not each.training
        assert not any(parameter.requires_grad for parameter in each.parameters())
        torch.testing.assert_close(each(input_ids=IDS).logits, expected)
    asked = [{"role": "user", "content": "red cat"}]
    assert "<user> red cat" in tokenizer.apply_chat_template(asked, tokenize=False)


def test_a_model_that_is_not_there_is_refused_before_one_is_loaded(run):
    with pytest.raises(fedsdr.UserError, match=r"no model 'gobal': choose from base, fedavg,"):
        run.model("gobal")


def test_a_model_answers_as_a_conversation_does(run):
    model, tokenizer = run.model("global", progress=False)
    asked = [{"role": "user", "content": "red cat"}]
    prompt = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=6)[0, prompt["input_ids"].shape[1] :]
    conversation = run.chat("global", max_tokens=6, progress=False)
    said = "".join(conversation.ask("red cat"))
    assert said == tokenizer.decode(answer, skip_special_tokens=True)


def test_an_export_is_a_folder_that_peft_loads(run, tmp_path, capsys):
    made = run.export(tmp_path / "model", "client:ben", progress=False)
    assert (made.model, made.merged) == ("client:ben", False)
    assert (tmp_path / "model" / "adapter_config.json").exists()
    assert capsys.readouterr() == ("", "")


def test_another_model_judges_the_answers(run, tmp_path, monkeypatch):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "red cat"}\n{"question": "blue dog sees"}\n')
    with serving(lambda messages: "Good. [[7]]") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "a key of a test")
        endpoint = fedsdr.judge_endpoint("a judge", retries=0)
        result = run.judge(questions, endpoint, answer_tokens=4, progress=False)
    assert result["kind"] == "score"
    assert read(run.folder / "judge.json") == {"judgings": [result]}
    with pytest.raises(fedsdr.UserError, match="has no model 'fedprox'"):
        run.judge(questions, endpoint, b="fedprox")


def test_a_finished_run_is_opened_again(run):
    again = fedsdr.open_run(str(run.folder))
    assert again == run
    assert repr(again) == f"Run({str(run.folder)!r}: fedavg, fedsdr)"
    assert again.models[:3] == ["base", "fedavg", "global"]
    assert again.report.exists()
    with pytest.raises(fedsdr.UserError, match="is not a run folder"):
        fedsdr.open_run(run.folder / "clients")
    with pytest.raises(fedsdr.UserError, match="open it by open_run"):
        fedsdr.open_comparison(run.folder)


def test_a_comparison_has_a_row_for_each_method_and_metric(home):
    tables = fedsdr.load_recipe(home / "recipe.toml", {"federation.rounds": 1})
    found = fedsdr.compare(tables, home / "seeds", seeds=[0, 4], progress=False)
    assert found == fedsdr.open_comparison(home / "seeds")
    [loss] = [row for row in found.metrics() if row["metric"] == "loss"]
    each = [run.metrics()[0]["loss"] for run in found.runs]
    assert (loss["method"], loss["n"]) == ("fedsdr", 2)
    assert loss["mean"] == pytest.approx(sum(each) / 2)
    assert loss["low"] < loss["mean"] < loss["high"]


# --- Before a run


def test_a_check_says_who_holds_what(home):
    checked = fedsdr.check(home / "recipe.toml", home / "new")
    assert [(row["name"], row["records"]) for row in checked.clients] == [
        ("anna", 5), ("ben", 7), ("cleo", 10),
    ]  # fmt: skip
    assert checked.recipe == fedsdr.load_recipe(home / "recipe.toml")
    assert not (home / "new").exists()


def test_a_plan_and_a_diagnosis_load_no_weights(home):
    tables = {"model.memory_check": False}
    estimated = fedsdr.plan(fedsdr.load_recipe(home / "recipe.toml", tables), flops=1e9)
    assert [each.name for each in estimated.methods] == ["fedsdr"]
    assert estimated.hours is not None
    diagnosis = fedsdr.diagnose(home / "recipe.toml", weights=False, progress=False)
    assert diagnosis.page is None
    assert not diagnosis.found["weights_loaded"]
    assert [each["name"] for each in diagnosis.found["clients"]] == list(toy_clients.CLIENTS)


def test_a_distillation_fills_the_cache_and_a_pilot_tells_its_cost(home, run):
    folders = fedsdr.distill(home / "recipe.toml", home / "rewrites", progress=False)
    assert folders == {"fedsdr": home / "rewrites"}
    made = home / "rewrites" / "clients" / "anna" / "rewrites.jsonl"
    assert made.read_bytes() == (run.folder / "clients" / "anna" / "rewrites.jsonl").read_bytes()
    pilots = fedsdr.pilot_distillation(home / "recipe.toml", 2, progress=False)
    assert [(each.client, each.sample) for each in pilots["fedsdr"]] == [
        ("anna", 2), ("ben", 2), ("cleo", 2), ("all", 6),
    ]  # fmt: skip


def test_rewriting_by_itself_gives_what_a_run_learns_from(home, run):
    model, tokenizer = run.model("base", progress=False)
    lines = (run.folder / "clients" / "anna" / "rewrites.jsonl").read_text().splitlines()
    expected = [json.loads(line) for line in lines]
    rows = [json.loads(line) for line in (home / "data" / "anna.jsonl").read_text().splitlines()]
    asked = run.recipe.distill.model_dump()
    options = {
        key: asked[key] for key in ("prompt", "contrast", "min_tokens", "batch_size", "checks")
    }
    kept = [rows[int(line["origin"].rpartition(":")[2]) - 1] for line in expected]
    made = fedsdr.rewrite(model, tokenizer, kept, progress=False, **options)
    assert [each.text for each in made] == [line["text"] for line in expected]
    with pytest.raises(fedsdr.UserError, match=r"distill.checks has \['good'\]: choose from"):
        fedsdr.rewrite(model, tokenizer, kept, checks=["good"])
    with pytest.raises(fedsdr.UserError, match=r"distill.attempts = 0: "):
        fedsdr.rewrite(model, tokenizer, kept, attempts=0)


# --- A guest in the caller's process


def test_what_transformers_prints_is_the_callers_again_after_a_call(home):
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()
    transformers_logging.enable_progress_bar()
    try:
        fedsdr.check(home / "recipe.toml")
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity(before)
