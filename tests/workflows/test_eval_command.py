"""`fedsdr eval`: the models of a run, resuming, comparing, the report, and users' mistakes."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file

from fedsdr.core.errors import UserError
from fedsdr.core.files import read_json, read_json_lines
from fedsdr.core.layout import BENCHMARKS_FOLDER
from fedsdr.core.progress import silent_reporter
from fedsdr.evaluate.benchmarks import harness
from fedsdr.evaluate.benchmarks.table import choose_benchmarks, task_manager
from fedsdr.model.identity import content_digest
from fedsdr.model.obtain import obtain_model
from fedsdr.model.peft_format import WEIGHTS
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows import benchmark as benchmarking
from fedsdr.workflows.benchmark import BenchmarkRequest, run_benchmarks
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe, toy_clients
from support.benchmark_files import write_benchmarks
from support.command_line import assert_told, invoke, snapshot
from support.gguf_files import tiny_gguf
from support.model_changes import CHANGES, weight

OWN = ["base", "fedavg", "global"]
CLIENTS = [f"client:{name}" for name in toy_clients.CLIENTS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose adapters are large enough to change answers."""
    place = tmp_path_factory.mktemp("run")
    path = tiny_recipe.write_recipe(place, federation={"rounds": 1}, evaluate={"every": 0})
    run_recipe(load_recipe(path, ["baselines=['fedavg']"]), place / "out", silent_reporter())
    for weights in (place / "out").rglob(WEIGHTS):
        found = load_file(weights)
        save_file({key: 30 * tensor for key, tensor in found.items()}, weights)
    return place / "out"


def request(folder: Path, data: Path, out: Path, **options: Any) -> BenchmarkRequest:
    return BenchmarkRequest(folder, ["crass", "truthfulqa"], data, out=out, **options)


def test_models_are_those_of_the_run_and_paired_with_the_base(folder, data, tmp_path):
    summary = run_benchmarks(
        request(folder, data, tmp_path / "b", models=["all"]), silent_reporter()
    )
    rows = {(row["model"], row["task"]): row for row in summary["results"]}
    names = [*OWN, *CLIENTS]
    assert set(rows) == {(name, task) for name in names for task in ("crass", "truthfulqa")}
    assert all(("to_base" in row) == (row["model"] != "base") for row in rows.values())
    means = {row["metrics"]["mc2"]["mean"] for (_, t), row in rows.items() if t == "truthfulqa"}
    assert len(means) == len(names)  # six models, six different likelihoods
    mine = rows["global", "truthfulqa"]
    assert mine["to_base"]["mc2"]["mean"] == pytest.approx(
        mine["metrics"]["mc2"]["mean"] - rows["base", "truthfulqa"]["metrics"]["mc2"]["mean"]
    )
    assert read_json(tmp_path / "b" / "summary.json") == summary


def test_an_interrupted_evaluation_keeps_what_is_done(folder, data, tmp_path, monkeypatch):
    asked: list[tuple[str, str]] = []
    real = harness.Suite.run

    def watched(self: Any, task: str, model: str) -> Any:
        asked.append((model, task))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, task, model)

    monkeypatch.setattr(harness.Suite, "run", watched)
    with pytest.raises(KeyboardInterrupt):
        run_benchmarks(request(folder, data, tmp_path), silent_reporter())
    summary = run_benchmarks(request(folder, data, tmp_path), silent_reporter())
    pairs = [(m, t) for m in OWN for t in ("crass", "truthfulqa")]
    assert asked == [*pairs[:3], *pairs[2:]]
    assert len(summary["results"]) == 6
    with pytest.raises(UserError, match=r"with limit = None, not 1: give another --out"):
        run_benchmarks(request(folder, data, tmp_path, limit=1), silent_reporter())


def test_two_runs_are_compared_question_by_question(folder, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run_benchmarks(request(folder, data, two, models=["base", "global"]), silent_reporter())
    path = two / "global" / "crass.jsonl"
    rows = read_json_lines(path)
    for row in rows:
        row["scores"]["acc"] = 1.0
    tiny_recipe.write_rows(path, rows)
    options = {"models": ["global", "fedavg"], "against": two}
    summary = run_benchmarks(request(folder, data, one, **options), silent_reporter())
    found = {(row["model"], row["task"]): row["differences"]
             for row in summary["against"]["results"]}  # fmt: skip
    assert set(found) == {("global", "crass"), ("global", "truthfulqa")}
    mine = read_json(one / "global" / "crass.json")["metrics"]["acc"]["mean"]
    assert found["global", "crass"]["acc"]["mean"] == pytest.approx(mine - 1.0)
    assert found["global", "truthfulqa"]["mc2"]["mean"] == 0.0
    assert read_json(one / "against.json") == summary["against"]


@pytest.fixture
def scored(folder: Path, data: Path, tmp_path: Path) -> BenchmarkRequest:
    """An evaluation of a plain model folder that is done, and may be repeated."""
    place = shutil.copytree(folder.parent / "model", tmp_path / "model")
    files = shutil.copytree(data, tmp_path / "data")
    asked = BenchmarkRequest(place, ["crass"], files, out=tmp_path / "out")
    run_benchmarks(asked, silent_reporter())
    return asked


@pytest.mark.parametrize("change", CHANGES)
def test_results_of_another_model_of_the_same_name_are_not_taken(scored, monkeypatch, change):
    monkeypatch.setattr(harness.Suite, "run", lambda *_: pytest.fail("asks a question"))
    run_benchmarks(scored, silent_reporter())
    before = snapshot(scored.out)
    change(scored.target)
    parts = ", ".join(CHANGES[change])
    with pytest.raises(UserError, match=rf"crass.json is of another model than 'base' .*{parts}"):
        run_benchmarks(scored, silent_reporter())
    assert snapshot(scored.out) == before


def test_results_that_do_not_say_their_model_are_not_taken(scored):
    path = scored.out / "base" / "crass.json"
    path.write_text(json.dumps({k: v for k, v in read_json(path).items() if k != "identity"}))
    other = path.with_name("gsm8k.json")  # of an earlier version too, and not asked for
    other.write_text(path.read_text().replace('"crass"', '"gsm8k"'))
    other.with_suffix(".jsonl").write_text(path.with_suffix(".jsonl").read_text())
    after = replace(scored, out=shutil.copytree(scored.out, scored.out.parent / "after"))
    (after.out / "base" / "crass.json").unlink()
    run_benchmarks(after, silent_reporter())
    assert (after.out / "base" / "crass.json").exists()
    with pytest.raises(UserError, match="which one, it does not say"):
        run_benchmarks(scored, silent_reporter())


def test_results_with_and_without_the_template_are_not_mixed(scored, monkeypatch):
    monkeypatch.setattr(harness.Suite, "run", lambda *_: pytest.fail("asks a question"))
    with pytest.raises(UserError, match=r"crass.json was evaluated with chat = False, not True"):
        run_benchmarks(replace(scored, chat=True), silent_reporter())


def test_a_run_prompts_as_its_recipe_says(tmp_path, data):
    evaluate = {"benchmarks": ["piqa"], "benchmark_data": str(data), "benchmark_chat": True}
    recipe = load_recipe(tiny_recipe.write_recipe(tmp_path, evaluate=evaluate))
    suite = prepare_run(recipe).load(silent_reporter()).benchmarks
    suite.run("piqa", "base")
    prompts = list(suite.tasks["piqa"]["piqa_piqa"].used)
    assert all(prompt.startswith("<user> Question: ") for prompt in prompts)
    assert all(prompt.endswith("Answer: <assistant> ") for prompt in prompts)


def test_results_of_other_questions_are_not_taken(scored):
    path = scored.data / "crass" / "test.jsonl"
    first, *rest = read_json_lines(path)
    tiny_recipe.write_rows(path, [{**first, "premise": first["premise"] + " red"}, *rest])
    with pytest.raises(UserError, match=r"crass.json was evaluated on other files \(questions"):
        run_benchmarks(scored, silent_reporter())


def test_another_runs_results_are_told_by_the_base_and_by_the_adapter(folder, data, scored):
    """The folder of results is common to a model and a run of it."""
    out = scored.out
    mine = BenchmarkRequest(folder, ["crass"], data, ["global"], out=out)
    assert len(run_benchmarks(mine, silent_reporter())["results"]) == 2  # of the same base model
    weights = folder / "global" / WEIGHTS
    kept = weights.read_bytes()
    try:
        save_file({key: 2 * tensor for key, tensor in load_file(weights).items()}, weights)
        with pytest.raises(UserError, match=r"another model than 'global' is now \(other adapters"):
            run_benchmarks(mine, silent_reporter())
    finally:
        weights.write_bytes(kept)
    weight(scored.target)
    other = BenchmarkRequest(scored.target, ["crass"], data, out=out)
    with pytest.raises(UserError, match=r"another model than .* is now \(other weights\)"):
        run_benchmarks(other, silent_reporter())


def test_a_benchmarks_digest_is_of_all_that_scores_depend_on(data):
    [chosen] = choose_benchmarks(["bbh"], data)
    benchmark, [subject, *_] = chosen.benchmark, chosen.subjects
    shot, *shots = subject.shots
    [question, *questions] = subject.questions
    cases = [
        (benchmark, subject),
        (benchmark, replace(subject, shots=[{**shot, "input": "other"}, *shots])),
        (benchmark, replace(subject, questions=[{**question, "target": "(C)"}, *questions])),
        (benchmark, replace(subject, questions=questions)),
        (benchmark, replace(subject, introduction="Other.")),
        (replace(benchmark, prompt=lambda row: "other"), subject),
        (replace(benchmark, until=("x",)), subject),
        (replace(benchmark, tokens=1), subject),
        (replace(benchmark, shots=1), subject),
        (replace(benchmark, version=2), subject),
    ]
    digests = [content_digest(each.content([part])) for each, part in cases]
    assert len(set(digests)) == len(cases)
    assert digests[0] == content_digest(benchmark.content([subject]))


@pytest.mark.parametrize(
    ("models", "spoil", "reason"),
    [
        (["fedavg"], {}, "has no result for fedavg on crass, truthfulqa: evaluate that run first"),
        (["base"], {"hash": "0"}, "not asked the same questions"),
        (["base"], {"id": "crass/9"}, "not asked the same questions"),
        (["base"], {"limit": 2}, "limit is None against 2"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_question(
    folder, data, tmp_path, monkeypatch, models, spoil, reason
):
    two = tmp_path / "two"
    run_benchmarks(request(folder, data, two, models=["base"]), silent_reporter())
    path = two / "base" / "crass.jsonl"
    first, *rest = read_json_lines(path)
    tiny_recipe.write_rows(
        path, [{**first, **{k: v for k, v in spoil.items() if k in first}}, *rest]
    )
    summary = read_json(path.with_suffix(".json"))
    summary["settings"] |= {k: v for k, v in spoil.items() if k not in first}
    path.with_suffix(".json").write_text(json.dumps(summary))
    monkeypatch.setattr(harness.Suite, "run", lambda *_: pytest.fail("asks a question"))
    with pytest.raises(UserError, match=reason):
        run_benchmarks(
            request(folder, data, tmp_path / "one", models=models, against=two), silent_reporter()
        )


def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    folder, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(benchmarking, "_open", lambda *_: pytest.fail("loads a model"))
    (tmp_path / "file").write_text("")
    code, said = invoke("eval", folder, "--tasks", "crass", "--data", data,
                        "--out", tmp_path / "file" / "out")  # fmt: skip
    assert_told(code, said, ["cannot write into", "file/out", "another --out"])


def test_the_command_writes_into_the_run_and_its_report(folder, data):
    before = (folder / "report.html").read_text()
    assert 'id="benchmarks"' not in before
    code, said = invoke("eval", folder, "--tasks", "crass", "--data", data, "--limit", 2)
    assert (code, "error" in said) == (0, False)
    assert sorted(p.name for p in (folder / BENCHMARKS_FOLDER).iterdir()) == [*OWN, "summary.json"]
    page = (folder / "report.html").read_text()
    assert 'id="benchmarks"' in page
    assert "CRASS" in page
    assert "paired t statistic" in page


def test_a_gguf_file_is_evaluated_as_the_model_that_it_holds(data, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "mine.gguf"
    tiny_gguf(file)
    folder = Path(obtain_model(str(file), tmp_path / "other", silent_reporter()))
    found, wanted = (
        run_benchmarks(
            BenchmarkRequest(target, ["crass"], data, out=tmp_path / f"of {target.name}"),
            silent_reporter(),
        )
        for target in (file, folder)
    )
    assert found["results"] == wanted["results"]
    with pytest.raises(UserError, match="is a model folder: say by --out"):
        run_benchmarks(BenchmarkRequest(file, ["crass"], data), silent_reporter())


def test_a_plain_model_folder(folder, data, tmp_path):
    model = folder.parent / "model"
    summary = run_benchmarks(
        BenchmarkRequest(model, ["crass"], data, out=tmp_path), silent_reporter()
    )
    assert [row["model"] for row in summary["results"]] == ["base"]
    with pytest.raises(UserError, match="is a model folder: say by --out"):
        run_benchmarks(BenchmarkRequest(model, ["crass"], data), silent_reporter())


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of lm-eval's own tasks only one is indexed, for all of them take half a minute."""
    place = Path(str(lm_eval.tasks.__file__)).parent / "sciq"
    few = TaskManager(include_path=str(place), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda: few)
    task_manager.cache_clear()
    yield
    task_manager.cache_clear()


# Along training


@pytest.mark.parametrize("method", ["fedavg", "fedex", "flora", "local"])
def test_benchmarks_along_training(data, tmp_path, monkeypatch, method):
    labels: list[str] = []
    real = harness.Suite.run
    monkeypatch.setattr(
        harness.Suite, "run",
        lambda self, task, model: labels.append(model) or real(self, task, model),
    )  # fmt: skip
    path = tiny_recipe.write_recipe(
        tmp_path,
        federation={"rounds": 4, "targets": "raw"},
        evaluate={"every": 3, "benchmarks": ["crass"], "benchmark_data": str(data),
                  "benchmark_every": 2, "benchmark_limit": 3},
    )  # fmt: skip
    overrides = [] if method == "fedavg" else [f"baselines=['{method}']"]
    run_recipe(load_recipe(path, overrides), tmp_path / "out", silent_reporter())
    rows = read_json_lines(tmp_path / "out" / "metrics.jsonl")
    assert [row["round"] for row in rows if "crass" in row.get("eval", {})] == [0, 2, 4]
    assert [row["round"] for row in rows if "loss" in row.get("eval", {})] == [0, 3, 4]
    assert rows[0]["eval"]["crass"] in [pytest.approx(100 * k / 3) for k in range(4)]
    assert labels.count("base") == 1  # every method starts from it
    assert labels.count("fedavg") == 2
    assert "CRASS" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("evaluate", "parts"),
    [
        ({"benchmarks": ["mnlu"]}, ["evaluate.benchmarks: 'mnlu' is not known", "mmlu, bbh, "]),
        ({"benchmarks": ["mmlu"]}, ["mmlu: no data folder", "mmlu/dev/SUBJECT_dev.csv"]),
        ({"benchmarks": ["drop"], "benchmark_data": "nowhere"}, ["nowhere is not a folder"]),
        ({"benchmarks": ["bbh"], "benchmark_data": "."}, ["lacks bbh: expected bbh/TASK.json"]),
        ({"benchmark_limit": 0}, ["evaluate.benchmark_limit = 0", "greater than 0"]),
    ],
)
def test_recipes_are_checked_before_any_work(tmp_path, evaluate, parts):
    path = tiny_recipe.write_recipe(tmp_path, evaluate=evaluate)
    code, said = invoke("run", path, "--out", tmp_path / "out")
    assert_told(code, said, parts)
    assert not (tmp_path / "out").exists()


# Mistakes


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--tasks", "mnlu"], ["--tasks: 'mnlu' is not known", "mmlu, bbh, drop, crass", "hub:"]),
        (["--tasks", ","], ["--tasks names no benchmark", "mmlu"]),
        (["--tasks", "bbh,bbh"], ["names 'bbh' twice"]),
        (["--tasks", "mmlu"], ["no data folder was given", "SUBJECT_test.csv"]),
        (["--tasks", "crass", "--data", "nowhere"], ["nowhere is not a folder", "premise"]),
        (["--tasks", "crass", "--limit", "0"], ["--limit 0: expected at least 1"]),
        (["--tasks", "crass", "--batch-size", "0"], ["--batch-size 0"]),
        (["--tasks", "crass", "--models", "base,x"], ["no model 'x'", "global", "or all"]),
        (["--tasks", "crass", "--against", "nowhere"], ["--against nowhere holds no results"]),
        (["--tasks", "hub:sciqq"], ["no task 'sciqq'; near it: sciq"]),
    ],
)
@pytest.mark.usefixtures("few_tasks")
def test_mistakes(folder, tmp_path, monkeypatch, args, parts):
    monkeypatch.chdir(tmp_path)
    before = snapshot(folder)
    code, said = invoke("eval", folder, *args, "--out", tmp_path / "out")
    assert_told(code, said, parts)
    assert not (tmp_path / "out").exists()
    assert snapshot(folder) == before


@pytest.mark.parametrize("options", [[], ["--out", "o"]])
@pytest.mark.parametrize("place", [".", "nowhere"])
def test_what_is_neither_run_nor_model(tmp_path, monkeypatch, data, place, options):
    monkeypatch.chdir(tmp_path)
    code, said = invoke("eval", place, "--tasks", "crass", "--data", data, *options)
    assert_told(code, said, ["is neither a run folder", "recipe.toml", "config.json"])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("crass.jsonl", "", ["holds no rows"]),
        ("crass.jsonl", "{", ["crass.jsonl, row 1: not valid JSON"]),
        ("crass.jsonl", '{"premise": "a"}\n', ["row 1: lacks 'question'; expected premise"]),
        (
            "crass.jsonl",
            '{"premise": "a", "question": "b", "options": ["c", "d"], "answer": "e"}\n',
            ["row 1: the answer is not one of the options"],
        ),
        (
            "crass.jsonl",
            '{"premise": 1, "question": "b", "options": ["c", "d"], "answer": "c"}\n',
            ["crass.jsonl, row 1: premise = 1: expected a text"],
        ),
        (
            "crass.jsonl",
            '{"premise": "a", "question": "b", "options": ["c", 2], "answer": "c"}\n',
            ["row 1: options must be a list of 2 to 8 texts"],
        ),
        (
            "gsm8k_train.jsonl",
            '{"question": "a", "answer": 3}\n',
            ["gsm8k_train.jsonl, row 1: answer = 3: expected a text"],
        ),
        (
            "drop_v0_dev.jsonl",
            '{"context": "a", "ref_text": "b"}\n{"context": "a", "ref_text": "|"}\n',
            ["drop_v0_dev.jsonl, row 2: ref_text = '|' holds no right answer"],
        ),
        (
            "drop_v0_dev.jsonl",
            '{"context": "a", "ref_text": "b"}\n' * 5,
            ["every row is on a passage of its 3 shots"],
        ),
        (
            "TruthfulQA.csv",
            "Question,Best Answer,Correct Answers,Incorrect Answers\na,b,c,d,e\n",
            ["TruthfulQA.csv, row 1: more cells than the header has"],
        ),
    ],
)
def test_files_that_are_wrong(folder, tmp_path, file, content, parts):
    (tmp_path / file).write_text(content)
    (tmp_path / "gsm8k_test.jsonl").write_text("")
    task = file.partition(".")[0].partition("_")[0].lower()
    args = ("eval", folder, "--tasks", task, "--data", tmp_path, "--out", tmp_path / "o")
    assert_told(*invoke(*args), parts)


def test_a_file_with_too_few_rows_for_its_shots(folder, data, tmp_path):
    lines = (data / "crass" / "test.jsonl").read_text().splitlines()[:3]
    (tmp_path / "crass.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="3 rows: expected more than its 3 shots"):
        run_benchmarks(
            BenchmarkRequest(folder, ["crass"], tmp_path, out=tmp_path / "o"), silent_reporter()
        )


def test_without_lm_eval(folder, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    args = ("eval", folder, "--tasks", "crass", "--data", data, "--out", tmp_path / "o")
    assert_told(*invoke(*args), ["pip install 'fedsdr[eval]'"])


# lm-eval's own tasks, their data from a stand-in for the hub


@pytest.mark.usefixtures("few_tasks")
@pytest.mark.filterwarnings("ignore")  # lm-eval's own
def test_a_task_of_lm_eval_itself(folder, tmp_path, monkeypatch):
    import datasets

    rows = [{"question": f"the cat {i}", "distractor1": "red", "distractor2": "green",
             "distractor3": "blue", "correct_answer": "cat", "support": "the cat"}
            for i in range(4)]  # fmt: skip
    table = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(
        datasets, "load_dataset",
        lambda **_: {"train": table, "validation": table, "test": table},
    )  # fmt: skip
    summary = run_benchmarks(
        BenchmarkRequest(folder, ["hub:sciq"], out=tmp_path, limit=3), silent_reporter()
    )
    assert [row["model"] for row in summary["results"]] == OWN
    for row in summary["results"]:
        assert row["questions"] == 3
        assert {"acc", "acc_norm"} <= row["metrics"].keys()
        assert "to_base" in row or row["model"] == "base"

    def unreachable(**_: Any) -> None:
        raise ConnectionError("no hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"cannot load lm-eval's task 'sciq': no hub"):
        run_benchmarks(
            BenchmarkRequest(folder, ["hub:sciq"], out=tmp_path / "o", limit=3), silent_reporter()
        )
    assert json.loads((tmp_path / "summary.json").read_text())["interval"] == benchmarking.INTERVAL
