"""Benchmarks against independent computations: prompts, likelihoods, generation, scores."""

import gzip
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from scipy import stats

from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.core.statistics import standard_error
from fedsdr.data.template import ChatFormat
from fedsdr.evaluate.benchmarks import results
from fedsdr.evaluate.benchmarks.drop import score_drop as drop_score
from fedsdr.evaluate.benchmarks.folder import read_lines
from fedsdr.evaluate.benchmarks.gsm8k import score_gsm8k as gsm8k_score
from fedsdr.evaluate.benchmarks.harness import Suite
from fedsdr.evaluate.benchmarks.harness_model import HarnessOptions, StreamLM
from fedsdr.evaluate.benchmarks.results import Question, Result
from fedsdr.evaluate.benchmarks.subject import ChoiceLikelihoods
from fedsdr.evaluate.benchmarks.table import TASKS, choose_benchmarks
from fedsdr.evaluate.benchmarks.truthfulqa import score_truthfulqa as truthfulqa_score
from fedsdr.model.base import LoadedModel, load_base
from fedsdr.model.identity import model_identity
from fedsdr.model.lora import Stream, TwoStreamModel
from support import tiny_models
from support.benchmark_files import ANSWERS, write_benchmarks
from support.real_data import EVAL
from support.word_tokenizers import opening_tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("eval"))


def base_of(family: str = "llama", streams: bool = False, **changes: Any) -> LoadedModel:
    """A tiny base model of strong random weights, with two active random streams if asked."""
    model = tiny_models.make(family)
    for key, value in changes.items():
        setattr(model.config, key, value)
    chat = ChatFormat(opening_tokenizer(False))
    base = LoadedModel(model, chat, "tiny", model_identity(model, chat))
    if streams:
        two = TwoStreamModel(model, "all-linear", 3, 6.0)
        for seed, stream in enumerate((Stream.RECTIFY, Stream.SMOOTH), start=1):
            two.load(stream, tiny_models.random_adapter(two.read(stream), seed))
        two.activate(Stream.RECTIFY, Stream.SMOOTH)
    return base


def suite(data: Path, tasks: list[str], base: LoadedModel, **options: Any) -> Suite:
    return Suite(choose_benchmarks(tasks, data), base, HarnessOptions(**options), silent_reporter())


# Prompts and scores, against plain transformers


def mmlu_prompt(folder: Path, subject: str, question: str, shots: int) -> str:
    """instruct-eval's prompt, written out once more."""
    lines = (folder / f"mmlu/dev/{subject}_dev.csv").read_text().splitlines()[1:]
    text = "The following are multiple choice questions (with answers) about "
    text += "".join(" " + part for part in subject.split("_")) + ".\n\n"

    def example(line: str) -> str:
        asked, *options, _ = line.split(",")
        body = "".join(f"\n{ANSWERS[j]}. {option}" for j, option in enumerate(options))
        return f"{asked}{body}\nAnswer:"

    for line in lines[:shots]:
        text += f"{example(line)} {ANSWERS[int(line[-1])]}\n\n"
    return text + example(question)


def small_context(tokens: int) -> dict[str, int]:
    return {"max_position_embeddings": tokens}


@pytest.mark.parametrize(("family", "streams"), [("llama", True), ("gpt2", True), ("qwen", False)])
def test_mmlu_is_what_plain_transformers_computes(data, family, streams):
    base = base_of(family, streams, **small_context(512))
    if family == "gpt2":
        base = base_of(family, streams)  # learnt positions: 128 and no more
    asked = suite(data, ["mmlu"], base, batch_size=3)
    result = asked.run("mmlu", "tiny")
    tokens, expected = opening_tokenizer(False), {}
    for subject in ("cats", "red_birds"):
        lines = (data / f"mmlu/test/{subject}_test.csv").read_text().splitlines()[1:]
        for i, line in enumerate(lines):
            for shots in range(5, -1, -1):
                prompt = mmlu_prompt(data, subject, line, shots)
                ids = tokens(prompt + " A")["input_ids"]
                if len(ids) <= base.context + 1:
                    break
            assert prompt in asked.tasks["mmlu"][f"mmlu_{subject}"].used
            logits = tiny_models.logits(base.model, torch.tensor([tokens(prompt)["input_ids"]]))
            letters = [tokens(letter)["input_ids"][-1] for letter in ANSWERS]
            best = int(logits[0, -1, letters].argmax())
            expected[f"{subject}/{i}"] = (float(best == int(line[-1])), shots)
    assert len({score for score, _ in expected.values()}) == 2
    assert {q.id: (q.scores["acc"], q.shots) for q in result.questions} == expected


def test_likelihoods_are_those_of_the_two_stream_model(data):
    """Batched and padded by lm-eval, one by one by hand."""
    base = base_of(streams=True, **small_context(512))
    asked = suite(data, ["truthfulqa"], base, batch_size=4)
    asked.run("truthfulqa", "tiny")
    tokens = opening_tokenizer(False)
    for instance in next(iter(asked.tasks["truthfulqa"].values())).instances:
        context, continuation = instance.args
        before = tokens(context)["input_ids"]
        ids = tokens(context + continuation)["input_ids"]
        logits = tiny_models.logits(base.model, torch.tensor([ids[:-1]])).log_softmax(-1)[0]
        by_hand = sum(float(logits[i - 1, ids[i]]) for i in range(len(before), len(ids)))
        assert instance.resps[0][0] == pytest.approx(by_hand, abs=1e-4)


def test_generation_is_greedy_and_padded_rows_do_not_differ(data):
    base = base_of(streams=True, **small_context(512))
    asked = suite(data, ["bbh"], base, batch_size=3)
    asked.run("bbh", "tiny")
    tokens = opening_tokenizer(False)
    for task in asked.tasks["bbh"].values():
        assert len(task.instances) == 4  # of 7, 3 are shots
        for instance in task.instances:
            ids = tokens(instance.args[0])["input_ids"]
            new: list[int] = []
            while len(new) < 32 and tokens.eos_token_id not in new:
                logits = tiny_models.logits(base.model, torch.tensor([ids + new]))
                new.append(int(logits[0, -1].argmax()))
            text = tokens.decode(new, skip_special_tokens=True)
            assert instance.resps[0].strip() == text.strip()


def test_bbh_prompts_have_the_first_three_examples_in_order(data):
    asked = suite(data, ["bbh"], base_of(**small_context(512)))
    asked.run("bbh", "tiny")
    shots = "".join(f"sees the cat {i}\nAnswer: ({ANSWERS[i]})\n\n" for i in range(3))
    expected = [f"{shots}sees the cat {i}\nAnswer:" for i in range(3, 7)]
    assert list(asked.tasks["bbh"]["bbh_sees"].used) == expected


# An oracle and its opposite


class Oracle(LM):
    """Answers every question of lm-eval's tasks right, or, if not `right`, wrong."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right = right

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(0.0 if self._wanted(r) == self.right else -99.0, False) for r in requests]

    def _wanted(self, request: Any) -> bool:
        doc = request.doc
        if "Best Answer" in doc:
            return request.idx < 1 + len(doc["Correct Answers"].split(";"))
        gold = doc["options"].index(doc["answer"]) if "premise" in doc else int(doc["answer"])
        return bool(request.idx == gold)

    def generate_until(self, requests: Any) -> list[str]:
        return [self._text(request.doc) if self.right else "wrong" for request in requests]

    def _text(self, doc: Any) -> str:
        return str(doc.get("target") or doc.get("ref_text", "").split("|")[-1] or doc["answer"])

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        raise NotImplementedError


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.filterwarnings("ignore")  # lm-eval's own
def test_an_oracle_scores_one_and_its_opposite_zero(data, task, right):
    asked = suite(data, [task], base_of(**small_context(512)))
    found = evaluate(Oracle(right), {"tasks": asked.tasks[task], "groups": {}}, bootstrap_iters=0)
    for name, samples in found["samples"].items():
        assert samples, name
        for sample in samples:
            scores = {metric: sample[metric] for metric in TASKS[task].metrics}
            assert scores == dict.fromkeys(scores, pytest.approx(float(right), abs=1e-9))


@pytest.mark.parametrize(
    ("said", "gold", "exact", "f1"),
    [
        ("The Cats.", "cats", 1.0, 1.0),  # case, article, full stop
        ("two black cats", "black cats", 0.0, 0.8),  # P 2/3, R 1
        ("50.60", "50.6|49.7", 1.0, 1.0),  # numbers by value
        ("49.7", "50.6|49.7", 1.0, 1.0),  # the best of the answers
        ("5 yards", "4 yards", 0.0, 0.0),  # another number: no credit for the unit
        ("yards", "4 yards", 0.0, 0.0),
        ("red dog", "blue cat", 0.0, 0.0),
        ("18-24", "18 24", 1.0, 1.0),  # hyphens part words
        ("", "cat", 0.0, 0.0),
    ],
)
def test_drop_by_hand(said, gold, exact, f1):
    scores = drop_score({"ref_text": gold}, said)
    assert (scores["exact"], scores["f1"]) == (exact, pytest.approx(f1, abs=0.005))


@pytest.mark.parametrize(
    ("said", "strict", "flexible"),
    [
        ("so 18.\n#### 18", 1.0, 1.0),
        ("#### 18.", 1.0, 1.0),
        ("it is $18", 0.0, 1.0),
        ("#### 17 or 18", 0.0, 1.0),
        ("nothing", 0.0, 0.0),
    ],
)
def test_gsm8k_by_hand(said, strict, flexible):
    scores = gsm8k_score({"answer": "x\n#### 18"}, said)
    assert scores == {"strict": strict, "flexible": flexible}


def test_truthfulqa_by_hand():
    row = {"Best Answer": "a", "Correct Answers": "a; b", "Incorrect Answers": "c"}
    log = [float(torch.tensor(p).log()) for p in (0.2, 0.2, 0.1, 0.3)]
    scores = truthfulqa_score(row, ChoiceLikelihoods(log, [1, 1, 1, 1]))
    assert scores == {"mc1": 0.0, "mc2": pytest.approx(0.5)}


# Context, special tokens, chat template


def test_shots_are_left_out_until_a_prompt_fits_and_a_longer_question_is_counted(data):
    full = suite(data, ["mmlu"], base_of(**small_context(512))).run("mmlu", "tiny")
    assert {(q.shots, q.cut) for q in full.questions} == {(5, False)}
    half = suite(data, ["mmlu"], base_of(**small_context(60))).run("mmlu", "tiny")
    assert all(0 < (q.shots or 0) < 5 and not q.cut for q in half.questions)
    summary = half.summary()
    assert (summary["fewer_shots"], summary["cut"]) == (8, 0)
    none = suite(data, ["mmlu"], base_of(**small_context(12))).run("mmlu", "tiny")
    assert {(q.shots, q.cut) for q in none.questions} == {(0, True)}
    assert none.summary()["cut"] == 8


@pytest.mark.parametrize(
    ("chat", "bos", "starts"),
    [
        (False, None, True), (False, True, True), (False, False, False),
        (True, None, False), (True, True, True), (True, False, False),
    ],
)  # fmt: skip
def test_special_tokens_are_put_before_prompts_as_asked(chat, bos, starts):
    model, with_bos = tiny_models.make("llama"), ChatFormat(opening_tokenizer(True))
    base = LoadedModel(model, with_bos, "tiny", model_identity(model, with_bos))
    lm = StreamLM(base, HarnessOptions(chat=chat, bos=bos), silent_reporter())
    assert lm.begins_with_bos is starts
    before, after = lm._encode_pair("a b", " c")
    assert (before[0] == tiny_models.IDS["bos_token_id"]) is starts
    assert len(before + after) == 3 + starts
    assert base.chat.tokenizer.pad_token == "<pad>"


def test_a_chat_template_gets_the_shots_as_turns(data):
    asked = suite(data, ["bbh"], base_of(**small_context(512)), chat=True)
    asked.run("bbh", "tiny")
    shots = "".join(
        f"<ask> sees the cat {i}\nAnswer: <answer> ({ANSWERS[i]}) <end> " for i in range(3)
    )
    prompts = list(asked.tasks["bbh"]["bbh_sees"].used)
    assert prompts[0] == f"{shots}<ask> sees the cat 3\nAnswer: <answer> "


# Pairs


def result(values: list[float], model: str = "a", **settings: Any) -> Result:
    questions = tuple(
        Question(f"s{i % 2}/{i}", f"h{i}", {"acc": v}, 3, False) for i, v in enumerate(values)
    )
    return Result(model, "mmlu", {"shots": 3, "limit": None, **settings}, questions)


def test_paired_differences_and_errors_are_those_of_scipy():
    a, b = [1.0, 0, 1, 1, 0, 1, 1], [0.0, 0, 1, 0, 1, 0, 1]
    found = results.paired_results(result(a), result(b), "acc")
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found["n"], found["mean"]) == (7, pytest.approx(2 / 7))
    assert (found["low"], found["high"]) == (
        pytest.approx(interval.low), pytest.approx(interval.high),
    )  # fmt: skip
    assert standard_error(a) == pytest.approx(stats.sem(a))
    assert standard_error([1.0]) is None
    assert results.paired_results(result([1.0]), result([0.0]), "acc")["low"] is None


def test_what_was_asked_otherwise_is_not_paired():
    with pytest.raises(UserError, match="limit is None against 5: evaluate both with the same"):
        results.paired_results(result([1.0, 0.0]), result([1.0, 0.0], limit=5), "acc")
    with pytest.raises(UserError, match="not asked the same questions"):
        results.paired_results(result([1.0, 0.0]), result([1.0]), "acc")


def test_questions_of_a_group_may_have_metrics_of_their_own(tmp_path):
    """A group of lm-eval's: one of its tasks has acc, another em, and both f1."""
    scores = [{"acc": 1.0, "f1": 0.5}, {"acc": 0.0, "f1": 0.1}, {"em": 1.0, "f1": 0.9}]
    questions = [Question(f"s{i}/0", f"h{i}", each, 0, False) for i, each in enumerate(scores)]
    mine = Result("a", "hub:g", {"shots": 0}, tuple(questions))
    found = mine.summary()["metrics"]
    means = {metric: each["mean"] for metric, each in found.items()}
    assert means == {"acc": 0.5, "f1": pytest.approx(0.5), "em": 1.0}
    assert found["em"]["subjects"] == {"s2": 1.0}
    assert results.paired_results(mine, mine, "acc")["n"] == 2
    only = replace(mine, questions=(replace(questions[0], scores={"f1": 0.5}), *questions[1:]))
    with pytest.raises(UserError, match="not the same questions have a score 'acc'"):
        results.paired_results(mine, only, "acc")


@pytest.mark.parametrize("task", ["mmlu", "drop"])
def test_questions_are_known_before_they_are_asked(data, task):
    asked = suite(data, [task], base_of(**small_context(512)), limit=2)
    foreseen = [(q.id, q.hash) for q in asked.questions(task)]
    assert foreseen == [(q.id, q.hash) for q in asked.run(task, "tiny").questions]


def test_a_line_of_json_may_hold_what_ends_lines_elsewhere(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "one\u2028two\x85three"
    path.write_text(json.dumps({"context": text}, ensure_ascii=False) + "\r\n\n", "utf-8")
    assert read_lines(path, ["context"]) == [{"context": text}]


def test_a_damaged_gzip_file_is_the_users_error(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b'{"context": "a b c d e f g"}\n')
    path.write_bytes(whole[:12] + b"\xff" * 8 + whole[20:])
    with pytest.raises(UserError, match=r"cannot read .*a\.jsonl\.gz"):
        read_lines(path, ["context"])


def test_a_result_is_read_as_it_was_written(tmp_path):
    mine = result([1.0, 0.0, 0.0], "fedavg/client:anna")
    assert results.read_result(tmp_path, mine.model, "mmlu") is None
    results.write_result(tmp_path, mine)
    assert results.read_result(tmp_path, mine.model, "mmlu") == mine
    metric = mine.summary()["metrics"]["acc"]
    assert metric["mean"] == pytest.approx(1 / 3)
    assert metric["subjects"] == {"s0": 0.5, "s1": 0.0}
    assert metric["subject_mean"] == 0.25
    path = results.result_path(tmp_path, mine.model, "mmlu").with_suffix(".jsonl")
    path.write_text(path.read_text().split("\n")[0] + "\n")
    with pytest.raises(UserError, match="do not fit each other: delete both"):
        results.read_result(tmp_path, mine.model, "mmlu")


# Real files and a real model


@pytest.mark.skipif(not EVAL.is_dir(), reason=f"needs the benchmarks' files in {EVAL}")
def test_real_files_hold_what_they_should():
    found = {c.name: c for c in choose_benchmarks(["mmlu", "bbh", "drop", "truthfulqa"], EVAL)}
    counts = {n: (len(c.subjects), sum(len(s.questions) for s in c.subjects))
              for n, c in found.items()}  # fmt: skip
    assert counts["mmlu"] == (57, 14042)
    assert counts["bbh"] == (27, 6511 - 27 * 3)
    assert counts["truthfulqa"] == (1, 790)
    assert 9400 < counts["drop"][1] < 9536


WEIGHTS = EVAL.parent / "weights" / "tinystories-656k"


@pytest.mark.skipif(not (EVAL.is_dir() and WEIGHTS.is_dir()), reason=f"needs {EVAL}, {WEIGHTS}")
def test_a_real_model_on_real_questions(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asks the network"))
    asked = suite(EVAL, ["truthfulqa", "drop"], load_base(str(WEIGHTS)), limit=3)
    found = [asked.run(task, "base").summary() for task in ("truthfulqa", "drop")]
    assert [each["questions"] for each in found] == [3, 3]
    assert 0 < found[0]["metrics"]["mc2"]["mean"] < 1
    assert found[1]["fewer_shots"] == 3
    for tasks in asked.tasks.values():
        assert all(each.dataset["questions"].cache_files == [] for each in tasks.values())
