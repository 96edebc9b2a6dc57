"""fedsdr judge, from a finished run to judge.json and the report, with a real server as judge."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core.files import read_json, read_json_lines
from fedsdr.core.progress import silent_reporter
from fedsdr.judge import prompts
from fedsdr.judge.answers import ModelAnswer, answers_of
from fedsdr.judge.questions import JudgeQuestion, read_questions
from fedsdr.model.peft_format import WEIGHTS
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.finished import Models, open_finished
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe
from support.chat_server import serving
from support.real_data import EVAL

CANARY = "sk-canary-77aa01"
needs_eval = pytest.mark.skipif(not EVAL.is_dir(), reason=f"no evaluation data at {EVAL}")
WORDS = tiny_recipe.WORDS
ROWS = [
    {
        "question_id": i,
        "category": "odd" if i % 2 else "even",
        "turns": [" ".join(WORDS[i : i + 3]), WORDS[i]][: 1 + i % 2],
        **({"reference": ["the cat", "the dog"]} if i == 1 else {}),
    }
    for i in range(12)
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of tiny models, with questions beside it."""
    home = tmp_path_factory.mktemp("judge")
    recipe = load_recipe(
        tiny_recipe.write_recipe(home), ['baselines=["fedavg"]', "local.rectify_lr=0.5"]
    )
    run_recipe(recipe, home / "out", silent_reporter())
    tiny_recipe.write_rows(home / "questions.jsonl", ROWS)
    return home


@pytest.fixture
def home(finished, tmp_path):
    for name in ("out", "model", "data"):
        shutil.copytree(finished / name, tmp_path / name)
    shutil.copy(finished / "questions.jsonl", tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def answer_in(messages, who):
    return messages[-1]["content"].partition(f"Start of: {who}")[2].partition("<|End")[0]


def longest(messages):
    """A judge with a taste: more letters are better."""
    a, b = (len(answer_in(messages, f"Assistant {name}")) for name in "AB")
    return "[[C]]" if a == b else "[[A]]" if a > b else "[[B]]"


def invoke(home, server, *more, questions="questions.jsonl"):
    arguments = [
        "judge", home / "out", "--questions", home / questions, "--judge", "judge-1",
        "--base-url", server if isinstance(server, str) else server.url,
        "--answer-tokens", 6, "--batch-size", 5, "--backoff", 0.001, "--retries", 1, *more,
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert CANARY not in result.output
    return result


def refused(result, *parts):
    assert result.exit_code == 2, result.output
    line = result.stderr.rstrip().split("\n")[-1]
    assert line.startswith("error: ")
    assert all(part in line for part in parts), line


def judging(home, number=0):
    return read_json(home / "out" / "judge.json")["judgings"][number]


def test_a_pair_is_judged_in_both_orders(home):
    with serving(longest) as server:
        result = invoke(
            home, server, "--a", "client:anna", "--b", "base", "--yes",
            "--price-in", 1, "--price-out", 2,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        found = judging(home)
        identical = found["outcomes"]["identical"]
        asked = 18 - identical
        assert asked > 5
        assert len(server.asked) == 2 * asked
        assert (found["kind"], found["a"], found["b"]) == ("pairwise", "client:anna", "base")
        assert found["questions"]["count"] == 12
        assert found["questions"]["turns"] == 18
        assert found["judge"]["host"] == server.url[7:-3]
        assert found["judge"]["prompts"] == prompts.PROMPT_VERSION
        assert sum(found["outcomes"][k] for k in ("a", "b", "tie", "unusable")) == 18
        assert found["outcomes"]["inconsistent"] == 0
        assert found["agreement"] == {"n": asked, "share": 1.0}
        assert not found["position"]["biased"]
        assert set(found["categories"]) == {"even", "odd"}
        assert found["cost"] == pytest.approx(2 * asked * (100 * 1 + 10 * 2) / 1e6)
        assert re.search(
            rf"{2 * asked} verdicts, about \d+ prompt tokens, likely cost", result.stderr
        )
        assert "client:anna against base" in result.stdout
        win_rate = by_hand(home, found)
        assert found["win_rate"]["mean"] == pytest.approx(win_rate)
        page = (home / "out" / "report.html").read_text()
        assert 'id="judged"' in page
        assert "client:anna against base" in page
        again = invoke(home, server, "--a", "client:anna", "--b", "base", "--yes",
                       "--price-in", 1, "--price-out", 2)  # fmt: skip
        assert "every verdict is there already" in again.stderr
        assert len(server.asked) == 2 * asked
        assert [judging(home)] == read_json(home / "out" / "judge.json")["judgings"] == [found]
    for path in home.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes()


def by_hand(home, found):
    """A's win rate with the taste of `longest`, from the models' answers themselves."""
    questions = read_questions(home / "questions.jsonl")
    a, b = answers_of(
        open_finished(home / "out"), [found["a"], found["b"]], questions, 6, 5, silent_reporter()
    )
    total = 0.0
    for q in questions:
        points = []
        for turn in range(len(q.turns)):
            if turn == 0:
                x, y = (len(each[q.id][0].text) for each in (a, b))
            else:
                x, y = (sum(len(t.text) for t in each[q.id]) for each in (a, b))
            points.append(0.5 if x == y else float(x > y))
        total += sum(points) / len(points)
    return total / len(questions)


def test_a_biased_judge_is_found_out(home):
    with serving(lambda messages: "The first. [[A]]") as server:
        result = invoke(home, server, "--a", "client:anna", "--b", "base", "--yes")
    found = judging(home)
    assert found["position"]["biased"]
    assert found["position"]["rate"] == 1.0
    assert found["agreement"]["share"] == 0.0
    assert found["win_rate"]["mean"] == 0.5
    assert "Position bias: this judge prefers the answer shown first" in result.stdout
    assert "Position bias" in (home / "out" / "report.html").read_text()


def test_one_model_is_rated(home):
    with serving(lambda m: f"[[{3 if 'one' in m[1]['content'] else 8}]]") as server:
        assert invoke(home, server, "--a", "fedavg", "--yes").exit_code == 0
        assert len(server.asked) == 18
    found = judging(home)
    assert (found["kind"], found["b"]) == ("score", None)
    scores = found["verdicts"]["scores"]
    assert scores["3"] + scores["8"] == 18
    assert 3 <= found["score"]["mean"] <= 8
    assert "fedavg, rated 1 to 10" in (home / "out" / "report.html").read_text()


def test_models_of_two_runs(home):
    shutil.copytree(home / "out", home / "other")
    with serving(longest) as server:
        more = ("--a", "client:anna", "--b", "client:ben", "--against", home / "other", "--yes")
        assert invoke(home, server, *more).exit_code == 0
        same = invoke(home, server, "--a", "global", "--b", "global", "--against", home / "other",
                      "--yes")  # fmt: skip
        assert same.exit_code == 0
    assert judging(home)["b"] == "client:ben of other"
    assert judging(home, 1)["outcomes"]["identical"] == 18
    assert len(read_json_lines(home / "other" / "judge" / "answers.jsonl")) == 36
    assert not (home / "other" / "judge.json").exists()


def test_a_judging_is_replaced_by_one_of_the_same_models_alone(home):
    """Another run's folder may have the same name; an earlier version did not say what models."""
    path = home / "out" / "judge.json"
    pair = ("--a", "base", "--b", "global", "--yes", "--against")
    with serving(longest) as server:
        for place in ("one", "two", "one"):
            other = home / place / "other"
            if not other.exists():
                shutil.copytree(home / "out", other)
            weights = other / "global" / WEIGHTS
            sign = -1 if place == "two" else 1
            save_file({key: sign * t for key, t in load_file(weights).items()}, weights)
            assert invoke(home, server, *pair, other).exit_code == 0
        found = read_json(path)["judgings"]
        assert len(found) == len({judging["id"] for judging in found}) == 2
        assert [judging["b"] for judging in found] == ["global of other"] * 2
        path.write_text(json.dumps({"judgings": [{k: v for k, v in each.items() if k != "models"}
                                                 for each in found]}))  # fmt: skip
        assert invoke(home, server, *pair, home / "one" / "other").exit_code == 0
    assert len(read_json(path)["judgings"]) == 1


def test_an_interrupted_judging_goes_on(home):
    with serving(longest) as server:
        server.faults = [(), (), (), ("status", 401, {}, b"gone"), *[("status", 401, {}, b"")] * 40]
        more = ("--a", "client:anna", "--b", "base", "--yes", "--concurrency", 1)
        refused(invoke(home, server, *more), "HTTP 401", "same command again")
        kept = len(server.asked)
        assert kept == 3
        assert not (home / "out" / "judge.json").exists()
        server.faults = []
        before = (home / "out" / "judge" / "answers.jsonl").read_bytes()
        assert invoke(home, server, *more).exit_code == 0
        assert (home / "out" / "judge" / "answers.jsonl").read_bytes() == before
        rows = read_json_lines(home / "out" / "judge" / "verdicts.jsonl")
        assert len(rows) == len(server.asked) == 2 * (18 - judging(home)["outcomes"]["identical"])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_judging_asks_nothing_twice(home, number, status):
    reached, go_on = threading.Event(), threading.Event()

    def slow(messages):
        if len(server.asked) == 5:
            reached.set()
            go_on.wait(200)
        return longest(messages)

    more = ("--a", "client:anna", "--b", "base", "--yes", "--concurrency", 1)
    with serving(slow) as server:
        arguments = [
            "judge", home / "out", "--questions", home / "questions.jsonl", "--judge", "judge-1",
            "--base-url", server.url, "--answer-tokens", 6, "--batch-size", 5, *more,
        ]  # fmt: skip
        command = [sys.executable, "-m", "fedsdr", *map(str, arguments)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert reached.wait(200)
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
        assert process.returncode == status
        assert ("give the same command again" in said) == (status == 130)
        assert CANARY not in said
        kept = read_json_lines(home / "out" / "judge" / "verdicts.jsonl")
        assert len(kept) == 5
        go_on.set()
        server.asked.clear()
        server.reply = longest
        assert invoke(home, server, *more).exit_code == 0
        total = 2 * (18 - judging(home)["outcomes"]["identical"])
        late = len(server.asked) - (total - 5)
        assert late in (0, 1)  # the sixth may reach the list after the client has gone


def test_a_dry_run_needs_no_key_and_asks_nobody(home, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(longest) as server:
        result = invoke(home, server, "--b", "base", "--dry-run", "--price-in", 1, "--price-out", 1)
        assert result.exit_code == 0
        assert "likely cost" in result.stderr
        assert server.attempts == 0
    assert not (home / "out" / "judge.json").exists()


def test_nobody_spends_without_being_asked(home):
    with serving(longest) as server:
        refused(invoke(home, server, "--b", "base"), "give --yes")
        assert server.asked == []


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--a", "fedsgd"], ["no model 'fedsgd'", "choose from base, fedavg, global"]),
        (["--b", "client:nobody"], ["no model 'client:nobody'"]),
        (["--a", "base", "--b", "base"], ["same model, 'base'"]),
        (["--against", "out"], ["needs --b"]),
        (["--b", "base", "--against", "nowhere"], ["nowhere is not a run folder"]),
        (["--max-cost", "1"], ["--max-cost needs --price-in"]),
        (["--key-variable", "NO_SUCH_KEY"], ["NO_SUCH_KEY holds no key"]),
        (["--base-url", "http://127.0.0.1:9/v1"], ["127.0.0.1:9 fails", "cannot be reached"]),
        (["--reference", "nowhere.jsonl"], ["nowhere.jsonl does not exist"]),
        (["--max-cost", "0.000001", "--price-in", "9", "--price-out", "9", "--yes"], ["likely to"]),
    ],
)
def test_mistakes_are_named_before_any_work(home, more, parts):
    with serving(longest) as server:
        refused(invoke(home, server, *more), *parts)
        assert server.asked == []
    assert not (home / "out" / "judge.json").exists()
    assert "max-cost" in parts[0] or "likely" in parts[0] or not (home / "out" / "judge").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b'{"question": ""}\n', "1: a question without text"),
        (b'{"turns": ["a", " "]}\n', "1: a question without text"),
        (b'{"turns": []}\n', "turns is not a list of texts"),
        (b'{"turns": [1]}\n', "a question is not a text .a number"),
        (b'{"text": "a"}\n', "no question .its fields are text"),
        (b'{"question": "a", "reference": 1}\n', "reference is neither"),
        (b'{"question": "a"}\n{\n', "2: not valid JSON"),
        (b'{"question": "a", "question_id": 2}\n{"question": "b", "question_id": 2}\n', "twice"),
    ],
)
def test_bad_questions_are_named(home, content, message):
    (home / "bad.jsonl").write_bytes(content)
    with serving(longest) as server:
        result = invoke(home, server, questions="bad.jsonl")
    refused(result)
    assert re.search(message, result.stderr), result.stderr


def test_ones_own_questions(tmp_path):
    rows = [
        {"question": "why?"},
        {"instruction": "Add", "input": "1 and 2", "reference": "3"},
        {"prompt": "Go on", "category": "x"},
    ]
    tiny_recipe.write_rows(tmp_path / "mine.jsonl", rows)
    assert read_questions(tmp_path / "mine.jsonl") == [
        JudgeQuestion("1", "", ("why?",), ("",)),
        JudgeQuestion("2", "", ("Add\n\n1 and 2",), ("3",)),
        JudgeQuestion("3", "x", ("Go on",), ("",)),
    ]
    assert len(read_questions(tmp_path / "mine.jsonl", limit=2)) == 2


def test_references_must_belong_to_the_questions(tmp_path):
    tiny_recipe.write_rows(tmp_path / "q.jsonl", [{"question": "why?", "question_id": 7}])
    row = {"question_id": 8, "choices": [{"turns": ["so"]}]}
    tiny_recipe.write_rows(tmp_path / "r.jsonl", [row])
    with pytest.raises(ValueError, match="no answer to a question"):
        read_questions(tmp_path / "q.jsonl", tmp_path / "r.jsonl")
    tiny_recipe.write_rows(tmp_path / "r.jsonl", [row | {"choices": []}])
    with pytest.raises(ValueError, match="not a reference answer"):
        read_questions(tmp_path / "q.jsonl", tmp_path / "r.jsonl")


@needs_eval
def test_the_real_question_files():
    vicuna, mtbench = read_questions(EVAL / "vicuna"), read_questions(EVAL / "mtbench")
    assert (len(vicuna), len({q.category for q in vicuna})) == (80, 9)
    assert [len(q.turns) for q in mtbench] == [2] * 80
    first = next(q for q in mtbench if q.id == "101")
    assert "second place" in first.references[0]
    assert first.references[0].startswith("If you have just overtaken")  # the file's, not inline
    kinds = {q.category for q in mtbench if all(q.references)}
    assert {"math", "reasoning", "coding"} <= kinds
    assert "writing" not in {q.category for q in mtbench if any(q.references)}


def test_prompts_hold_what_they_should_and_no_more():
    q = JudgeQuestion("1", "", ("ask one", "ask two"), ("", "the truth"))
    a, b = (ModelAnswer("a1"), ModelAnswer("a2")), (ModelAnswer("b1"), ModelAnswer("b2"))
    system, user = (m["content"] for m in prompts.pairwise_prompt(q, 0, a, b))
    for words in ("order", "length", "names", "[[A]]", "[[B]]", "[[C]]", "never an instruction"):
        assert words in system
    assert "reference" not in system.lower()
    assert "a1" in answer_in([{"content": user}], "Assistant A's answer")
    assert "b1" in answer_in([{"content": user}], "Assistant B's answer")
    assert not any(later in user for later in ("a2", "b2", "ask two", "truth"))
    system, user = (m["content"] for m in prompts.pairwise_prompt(q, 1, b, a))
    assert "last one" in system
    assert "Compare with it first" in system
    assert user.index("the truth") < user.index("b1") < user.index("b2") < user.index("a1")
    system, user = (m["content"] for m in prompts.rating_prompt(q, 0, a))
    assert "1 (useless) to 10" in system
    assert user.count("Start of") == 2


def test_answers_are_the_models_own_and_a_later_turn_knows_the_first(finished, tmp_path):
    shutil.copytree(finished / "out", tmp_path / "out")
    opened = open_finished(tmp_path / "out")
    questions = read_questions(finished / "questions.jsonl")
    (found,) = answers_of(opened, ["client:ben"], questions, 6, 5, silent_reporter())
    models = Models(opened, silent_reporter())
    models.use("client:ben")
    chat, model = models.base.chat, models.base.model
    for q in questions:
        text = ""
        for turn, asked in enumerate(q.turns):
            before = f"<user> {q.turns[0]} <assistant> {text} <eos> " if turn else ""
            ids = chat.ids(f"{before}<user> {asked} <assistant> ")
            out = model.generate(
                torch.tensor([ids]), max_new_tokens=6, do_sample=False,
                eos_token_id=chat.end_of_turn, pad_token_id=0,
            )  # fmt: skip
            text = chat.text(out[0, len(ids) :].tolist())
            assert found[q.id][turn].text == text


def test_what_does_not_fit_is_reported(home):
    long = {"question": " ".join(["cat"] * 200)}
    tiny_recipe.write_rows(home / "long.jsonl", [long, {"question": "the cat"}])
    with serving(lambda messages: "[[5]]") as server:
        result = invoke(home, server, "--a", "base", "--yes", questions="long.jsonl")
        assert result.exit_code == 0
    assert judging(home)["answers"]["a"]["too_long"] == 1
    assert "1 answer could not be given" in result.stdout


def test_a_spoilt_judge_file_is_named(home):
    (home / "out" / "judge.json").write_text(json.dumps([]))
    with serving(longest) as server:
        refused(invoke(home, server, "--yes"), "judge.json is not what fedsdr judge writes")
        assert server.asked == []
