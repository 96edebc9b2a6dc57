"""ARC, PIQA and OpenBookQA: the picks and likelihoods of lm-eval's own tasks on the same rows."""

import json
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.data.template import ChatFormat
from fedsdr.evaluate.benchmarks import harness_model
from fedsdr.evaluate.benchmarks.commonsense import COMMONSENSE, score_commonsense
from fedsdr.evaluate.benchmarks.folder import read_lines
from fedsdr.evaluate.benchmarks.harness import Suite
from fedsdr.evaluate.benchmarks.harness_model import HarnessOptions
from fedsdr.evaluate.benchmarks.subject import ChoiceLikelihoods
from fedsdr.evaluate.benchmarks.table import choose_benchmarks
from fedsdr.model.base import LoadedModel
from fedsdr.model.identity import model_identity
from support import tiny_models, tiny_recipe
from support.benchmark_files import write_commonsense
from support.real_data import EVAL
from support.word_tokenizers import opening_tokenizer

HARNESS_FOLDERS = {name: name.partition("_")[0] for name in COMMONSENSE}  # ARC's two are in one


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    write_commonsense(folder)
    return folder


def harness_rows(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same questions in the format of lm-eval's own task."""
    if name == "piqa":
        return [
            {"goal": row["question"], "sol1": row["choices"][0], "sol2": row["choices"][1],
             "label": row["answer"]}
            for row in rows
        ]  # fmt: skip
    question = "question_stem" if name == "openbookqa" else "question"
    return [
        {
            question: row["question"],
            "choices": {"text": row["choices"], "label": list("ABCDE"[: len(row["choices"])])},
            "answerKey": "ABCDE"[row["answer"]],
        }
        for row in rows
    ]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", COMMONSENSE)
@pytest.mark.filterwarnings("ignore")  # lm-eval's own
def test_picks_and_likelihoods_are_those_of_lm_eval(data, monkeypatch, name, bos):
    rows = read_lines(data / "commonsense" / f"{name}.jsonl", ["question"])
    table = datasets.Dataset.from_list(harness_rows(name, rows))
    monkeypatch.setattr(
        datasets, "load_dataset",
        lambda **_: {"train": table, "validation": table, "test": table},
    )  # fmt: skip
    place = Path(str(lm_eval.tasks.__file__)).parent / HARNESS_FOLDERS[name]
    theirs = TaskManager(include_path=str(place), include_defaults=False).load([name])["tasks"]
    model, tokenizer = tiny_models.make("llama"), opening_tokenizer(bos)
    wanted = evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3),
        {"tasks": theirs, "groups": {}}, bootstrap_iters=0,
    )["samples"][name]  # fmt: skip
    chat = ChatFormat(tokenizer)
    base = LoadedModel(model, chat, "tiny", model_identity(model, chat))
    options = HarnessOptions(batch_size=5)
    suite = Suite(choose_benchmarks([name], data), base, options, silent_reporter())
    found = suite.run(name, "tiny")
    instances = suite.tasks[name][f"{name}_{name}"].instances
    assert len(found.questions) == len(rows)
    for number, sample in enumerate(wanted):
        mine = [each for each in instances if each.doc_id == number]
        assert [each.args for each in mine] == [tuple(args) for args in sample["arguments"]]
        likelihoods = [each.resps[0][0] for each in mine]
        assert likelihoods == pytest.approx([r[0][0] for r in sample["resps"]], abs=1e-4)
        scores = found.questions[number].scores
        assert (scores["acc"], scores["acc_norm"]) == (sample["acc"], sample["acc_norm"])
    assert any(q.scores["acc"] != q.scores["acc_norm"] for q in found.questions)


def test_a_model_that_cannot_share_prompts_has_the_same_likelihoods(data, monkeypatch):
    found = []
    for _ in range(2):
        model, chat = tiny_models.make("llama"), ChatFormat(opening_tokenizer(True))
        base = LoadedModel(model, chat, "tiny", model_identity(model, chat))
        suite = Suite(choose_benchmarks(["piqa"], data), base, HarnessOptions(), silent_reporter())
        suite.run("piqa", "tiny")
        found.append([each.resps[0][0] for each in suite.tasks["piqa"]["piqa_piqa"].instances])
        monkeypatch.setattr(harness_model, "shares_prompts", lambda model: False)
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_each_length_may_choose_another_answer():
    row = {"question": "q", "choices": ["abcd", "abcdefgh", "a"], "answer": 0}
    by_hand = {  # nats, tokens: best in all, by character, by token
        (-4.0, -5.0, -2.0): ((1, 4, 1), {"acc": 0, "acc_norm": 0, "acc_token": 0}),
        (-2.0, -3.0, -2.5): ((1, 3, 1), {"acc": 1, "acc_norm": 0, "acc_token": 0}),
        (-3.0, -7.0, -2.5): ((4, 4, 1), {"acc": 0, "acc_norm": 1, "acc_token": 1}),
        (-3.0, -7.0, -2.9): ((2, 5, 2), {"acc": 0, "acc_norm": 1, "acc_token": 0}),
    }
    for nats, (tokens, scores) in by_hand.items():
        assert score_commonsense(row, ChoiceLikelihoods(nats, tokens)) == scores


def test_tokens_of_choices_are_those_after_the_prompt(data):
    model, chat = tiny_models.make("llama"), ChatFormat(opening_tokenizer(True))
    base = LoadedModel(model, chat, "tiny", model_identity(model, chat))
    suite = Suite(choose_benchmarks(["piqa"], data), base, HarnessOptions(), silent_reporter())
    suite.run("piqa", "tiny")
    task = suite.tasks["piqa"]["piqa_piqa"]
    rows = read_lines(data / "commonsense" / "piqa.jsonl", ["choices"])
    words = [[len(choice.split()) for choice in row["choices"]] for row in rows]
    assert list(task.lengths.values()) == words
    assert len({tuple(each) for each in words}) > 1


def test_a_file_may_lie_at_the_top_of_the_folder(data, tmp_path):
    (tmp_path / "piqa.jsonl").write_bytes((data / "commonsense" / "piqa.jsonl").read_bytes())
    [here], [there] = (choose_benchmarks(["piqa"], folder) for folder in (tmp_path, data))
    assert here.subjects == there.subjects


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": 3}, "row 2: question = 3: expected a text"),
        ({"question": " "}, "row 2: the question is empty"),
        (
            {"question": "half \ud83d"},
            "row 2: not valid Unicode (half a surrogate pair at",
        ),
        (
            {"note": [{"\ud83d": 1}]},
            "row 2: not valid Unicode (half a surrogate pair at",
        ),
        ({"answer": float("nan")}, "row 2: not valid JSON (NaN is no JSON number): mend or remove"),
        ({"question": None}, "row 2: lacks 'question'; expected question, choices, answer"),
        ({"choices": "a"}, "row 2: choices = 'a': expected a list of 2 texts or more"),
        ({"choices": ["a"]}, "row 2: choices = ['a']: expected a list of 2 texts or more"),
        ({"choices": ["a", 2]}, "row 2: choices holds 2: expected texts, none empty"),
        ({"choices": ["a", " "]}, "row 2: choices holds ' ': expected texts, none empty"),
        ({"answer": 2}, "row 2: answer = 2: expected the number of the right choice, 0 to 1"),
        ({"answer": -1}, "row 2: answer = -1: expected the number of the right choice, 0 to 1"),
        ({"answer": "B"}, "row 2: answer = 'B': expected the number of the right choice, 0 to 1"),
        ({"answer": True}, "row 2: answer = True: expected the number of the right choice"),
        ({"answer": 0.0}, "row 2: answer = 0.0: expected the number of the right choice"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path, changes, reason):
    row = {"question": "Why?", "choices": ["a", "b"], "answer": 1}
    tiny_recipe.write_rows(tmp_path / "piqa.jsonl", [row, {**row, **changes}])
    with pytest.raises(UserError) as raised:
        choose_benchmarks(["piqa"], tmp_path)
    assert f"{tmp_path / 'piqa.jsonl'}, {reason}" in str(raised.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"question": "a', "not valid JSON (Unterminated string starting at at column 14): mend"),
        (b'{"question": "caf\xe9"}', "not valid JSON ('utf-8' codec can't decode byte 0xe9"),
        (b'{"answer": 0, "answer": 1}', "not valid JSON (the key 'answer' stands twice in an"),
        (b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b"[]", "lacks 'question'; expected question, choices, answer"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, line, reason):
    row = {"question": "Why?", "choices": ["a", "b"], "answer": 1}
    path = tmp_path / "piqa.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n\n" + line)
    with pytest.raises(UserError) as raised:
        choose_benchmarks(["piqa"], tmp_path)
    assert f"{path}, row 2: {reason}" in str(raised.value)


def test_a_choice_longer_than_the_context_is_the_users_error(tmp_path):
    row = {"question": "red", "choices": ["cat", "cat " * 200], "answer": 0}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(row))
    model, chat = tiny_models.make("gpt2"), ChatFormat(opening_tokenizer(False))
    base = LoadedModel(model, chat, "tiny", model_identity(model, chat))
    suite = Suite(choose_benchmarks(["piqa"], tmp_path), base, HarnessOptions(), silent_reporter())
    with pytest.raises(UserError, match="of 200 tokens exceeds the model's context of 128"):
        suite.run("piqa", "tiny")


@pytest.mark.skipif(not EVAL.is_dir(), reason=f"needs the benchmarks' files in {EVAL}")
def test_real_files_hold_what_they_should():
    found = choose_benchmarks(list(COMMONSENSE), EVAL)
    counts = {each.name: len(each.subjects[0].questions) for each in found}
    assert counts == {"arc_easy": 2376, "arc_challenge": 1172, "piqa": 1838, "openbookqa": 500}
