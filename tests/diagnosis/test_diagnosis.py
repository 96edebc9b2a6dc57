"""Diagnosis: counts by hand, measures against other implementations, bad input, no text leaks."""

import csv
import itertools
import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core.adapters import cosine
from fedsdr.data.records import ClientData, Record, Turn
from fedsdr.data.template import ChatFormat
from fedsdr.diagnosis.data_quality import measure_quality, normalise_text
from fedsdr.diagnosis.divergence import mean_js, tfidf_cosine
from fedsdr.diagnosis.gradients import client_gradients
from fedsdr.diagnosis.heterogeneity import (
    GroupedGradients,
    WordCounts,
    divergence_change,
    js_of,
    measure_divergence,
    tfidf_of,
)
from fedsdr.diagnosis.reading import interpret_diagnosis
from support import tiny_recipe, toy_clients
from support.diagnosed_clients import EXAMPLES, PAD, new_model
from support.real_data import DATA, data_file
from support.repository import REPOSITORY
from support.tiny_models import start_adapter

CANARY = "zyzzyva"


def record(prompt: str, response: str, **more: str) -> Record:
    return Record((Turn("user", prompt),), response, **more)


# --- Data quality


def test_holdings_by_hand():
    """One token a word: "<user> p <assistant> " is two and the prompt, a response ends by <eos>."""
    chat = ChatFormat(tiny_recipe.word_tokenizer(tiny_recipe.WORDS))
    anna = ClientData(
        "anna",
        (
            record("red", "one two"),
            record("RED ", "one\n two"),
            record("green", "cat"),
            record("red green blue one two three", "cat"),
            record("blue", "one two three cat"),
        ),
        (record("Green", "dog", origin="a.jsonl:9"), record("bird", "cat")),
    )
    ben = ClientData(
        "ben",
        (record("green", "cat", category="pets"), record("bird", "?", answer="x")),
    )
    a, b = measure_quality([anna, ben], chat, 7)
    assert (a.records, a.held_out, b.records, b.held_out) == (5, 2, 2, 0)
    assert a.prompt_tokens.total == (1 + 1 + 1 + 6 + 1) + 5 * 2
    assert a.response_tokens.total == (2 + 2 + 1 + 1 + 4) + 5
    assert a.response_tokens.quantiles == tuple(
        np.percentile([3, 3, 2, 2, 5], [5, 25, 50, 75, 95, 100])
    )
    assert (a.left_out, a.truncated) == (1, 1)
    assert (a.repeated, a.shared, b.repeated, b.shared) == (1, 1, 0, 1)
    assert (a.leaked, a.leaked_across, a.leaks) == (1, 2, ("a.jsonl:9", "a.jsonl:9"))
    assert (b.wordless, b.checkable, a.checkable) == (1, 1, 0)
    assert b.categories == {"pets": 1}


def test_short_responses_stand_out_only_among_long_ones():
    chat = ChatFormat(tiny_recipe.word_tokenizer(tiny_recipe.WORDS))
    long = [record(f"p {i}", "cat " * 12) for i in range(3)]
    some, none = measure_quality(
        [
            ClientData("a", (*long, record("q", "a cat"), record("r", "a cat sees"))),
            ClientData("b", tuple(record(f"s {i}", "positive") for i in range(3))),
        ],
        chat,
        64,
    )
    assert (some.short, none.short) == (1, 0)


def test_normalised():
    assert normalise_text(" \uff21\tb\n C ") == "a b c"


# --- Heterogeneity

TEXTS = {
    "anna": ["The cat sees a dog.", "the dog", "a dog sees a cat"],
    "ben": ["A dog likes the red bird", "red, red!", "the red bird"],
    "cleo": ["green", "Is the bird green or blue? Blue", "blue and green"],
}


def test_measures_of_counts_are_those_of_texts():
    (counts,) = WordCounts([TEXTS], 0)._counts([np.ones(3)] * 3)
    assert js_of(counts) == pytest.approx(mean_js(TEXTS), abs=1e-12)
    assert tfidf_of(counts) == pytest.approx(tfidf_cosine(TEXTS), abs=1e-12)


def test_resamples_take_whole_records():
    weights = [np.array([2, 0, 1]), np.array([0, 3, 0]), np.array([1, 1, 1])]
    taken = {
        name: [text for text, n in zip(texts, w, strict=True) for _ in range(n)]
        for (name, texts), w in zip(TEXTS.items(), weights, strict=True)
    }
    (counts,) = WordCounts([TEXTS], 0)._counts(weights)
    assert js_of(counts) == pytest.approx(mean_js(taken), abs=1e-12)


def test_intervals_hold_the_estimate_and_narrow_with_records():
    few = measure_divergence(TEXTS, seed=1)
    many = measure_divergence({name: texts * 30 for name, texts in TEXTS.items()}, seed=1)
    assert few.mean_js.low < few.mean_js.mean < few.mean_js.high
    assert few.mean_js.mean == pytest.approx(mean_js(TEXTS))
    spread = [each.mean_js.high - each.mean_js.low for each in (few, many)]
    assert spread[1] < spread[0] / 3


def test_change_of_nothing_has_no_interval():
    found = divergence_change(TEXTS, TEXTS, seed=0)
    assert found.js == (0, None, None)


def test_chance_is_as_far_apart_as_alike_clients():
    draw = np.random.default_rng(0)
    alike = {
        name: [" ".join(f"w{i}" for i in draw.integers(50, size=20)) for _ in range(40)]
        for name in "abc"
    }
    found = measure_divergence(alike, seed=0)
    assert found.even_js == pytest.approx(found.chance_js, abs=0.01)
    unlike = {name: [text.replace("w", name) for text in each] for name, each in alike.items()}
    found = measure_divergence(unlike, seed=0)
    assert found.even_js == pytest.approx(1)
    assert found.chance_js < 0.3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_grouped_gradients_are_the_clients(batch_size):
    model = new_model()
    shared = start_adapter(model)
    found = GroupedGradients(model, EXAMPLES, shared, PAD, batch_size)
    assert found.groups == 4
    whole = client_gradients(model, EXAMPLES, shared, PAD, 4, limit=9)
    measured = found.measured()
    for (i, a), (j, b) in itertools.combinations(enumerate(EXAMPLES), 2):
        assert measured.cosine.matrix[i, j] == pytest.approx(cosine(whole[a], whole[b]), abs=1e-5)
    halves = {
        (name, start): [e for g in range(start, 4, 2) for e in each[g::4]]
        for name, each in EXAMPLES.items()
        for start in (0, 1)
    }
    parts = client_gradients(model, halves, shared, PAD, 4, limit=9)  # type: ignore[arg-type]
    own = [cosine(parts[n, 0], parts[n, 1]) for n in EXAMPLES]  # type: ignore[index]
    assert measured.own == pytest.approx(np.mean(own), abs=1e-5)
    assert measured.mean.low < measured.mean.mean < measured.mean.high


# --- The command


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    path = tiny_recipe.write_recipe(tmp_path)
    for file in (tmp_path / "data").iterdir():
        rows = tiny_recipe.client_rows(len(file.stem), 9)
        rows += [{"prompt": f"{CANARY} red cat", "response": f"one {CANARY} two"}]
        tiny_recipe.write_rows(file, rows)
    return path


def invoke(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["diagnose", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_everything_with_rewrites(recipe, tmp_path):
    out = tmp_path / "out"
    code, said, _ = invoke(recipe, "--out", out, "--gradients", "6", "--distilled", "6")
    assert code == 0
    found = json.loads((out / "diagnosis.json").read_text())
    assert [c["name"] for c in found["clients"]] == list(toy_clients.CLIENTS)
    assert found["gradients"]["records"] == 6
    assert found["rewriting"]["records"] == dict.fromkeys(toy_clients.CLIENTS, 6)
    assert "rewritten_gradients" in found["rewriting"]
    assert {p["side"] for p in found["map"]} == {"raw", "rewritten"}
    files = {path.name for path in out.iterdir()}
    assert files == {"diagnosis.html", "diagnosis.json", "js.csv", "tfidf.csv", "gradients.csv",
                     "lengths.csv", "map.csv"}  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    rows = csv.DictReader((out / "js.csv").read_text().splitlines())
    values = {(r["side"], r["client"], r["other"]): float(r["value"]) for r in rows}
    value = values["raw, all records", "anna", "ben"]
    assert value == found["apart"]["js"]["matrix"][0][1]
    for text in (said, *(path.read_text() for path in out.iterdir())):
        assert CANARY not in text
        assert "nan" not in text.lower().replace("anna", "")


def test_rewrites_are_found_in_the_cache_again(recipe, tmp_path):
    assert "raw_gradients" not in invoke(recipe, "--gradients", "4", "--out", tmp_path / "a")[1]
    assert "rewriting" not in json.loads((tmp_path / "a" / "diagnosis.json").read_text())
    invoke(recipe, "--gradients", "4", "--distilled", "4")
    invoke(recipe, "--gradients", "4", "--out", tmp_path / "b")
    assert "rewriting" in json.loads((tmp_path / "b" / "diagnosis.json").read_text())


def test_no_model_and_rewrites_of_a_file(recipe, tmp_path):
    file = tmp_path / "rewritten.jsonl"
    lines = [
        line for path in (tmp_path / "data").iterdir() for line in path.read_text().splitlines()
    ]
    rows = [json.loads(line) for line in lines]
    tiny_recipe.write_rows(file, [{**row, "response": "Sure, the same words"} for row in rows])
    code, said, _ = invoke(recipe, "--no-model", "--rewrites", file, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert (code, found["weights_loaded"], "gradients" in found) == (0, False, False)
    assert found["rewriting"]["rewritten"]["mean_js"]["mean"] == pytest.approx(0, abs=1e-12)
    assert "JS divergence" in said


@pytest.mark.parametrize("option", ["--gradients", "--distilled"])
def test_what_compares_clients_needs_two(recipe, tmp_path, option):
    source = f"data.sources=[{{path='{tmp_path / 'data' / 'ben.jsonl'}', client='ben'}}]"
    code, _, said = invoke(recipe, option, "2", "--set", source)
    assert code == 2
    assert f"{option} compares clients, and there is only 'ben': remove it" in said


def test_one_client_has_no_pairs(recipe, tmp_path):
    code, said, _ = invoke(recipe, "--set", f"data.sources=[{{path='{tmp_path}/data/anna.jsonl'}}]",
                           "--set", "data.split.clients=1", "--no-model",
                           "--out", tmp_path / "out")  # fmt: skip
    assert code == 0
    assert "One client only: there are no pairs" in said
    assert not (tmp_path / "out" / "js.csv").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--gradients", "0"], ["--gradients 0", "at least 1", "--no-model"]),
        (["--distilled", "0"], ["--distilled 0: give at least 1 record"]),
        (["--no-model", "--gradients", "3"], ["--no-model", "remove it"]),
        (["--no-model", "--distilled", "3"], ["--no-model", "remove it"]),
        (["--rewrites", "x", "--distilled", "3"], ["--rewrites and --distilled"]),
        (["--no-model", "--rewrites", "gone.jsonl"], ["gone.jsonl does not exist"]),
        (["--set", "lora.rank=0"], ["lora.rank = 0"]),
        (["--set", "data.sources=[]"], ["no data"]),
        (["--no-model", "--set", "model.max_length=2"], ["no record fits into 2 tokens"]),
        (["--set", "model.max_length=2"], ["no record fits into 2 tokens"]),
        (["--out", "data"], ["is not empty and nothing is written over"]),
        (["--out", "recipe.toml/out"], ["cannot write into recipe.toml/out", "another --out"]),
    ],
)
def test_bad_input(recipe, tmp_path, monkeypatch, options, parts):
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    code, _, said = invoke(recipe, *options)
    assert code == 2
    assert all(part in said for part in parts), said
    assert "Traceback" not in said
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_clients_without_words(recipe, tmp_path):
    tiny_recipe.write_rows(tmp_path / "data" / "ben.jsonl", [{"prompt": "a", "response": "?"}] * 3)
    code, _, said = invoke(recipe, "--no-model")
    assert code == 2
    assert "'ben' has no words" in said


def test_rewrites_of_other_prompts(recipe, tmp_path):
    tiny_recipe.write_rows(tmp_path / "other.jsonl", [{"prompt": "unheard", "response": "of"}])
    code, _, said = invoke(recipe, "--no-model", "--rewrites", tmp_path / "other.jsonl")
    assert code == 2
    assert "no prompt of client 'anna'" in said


# --- In words


def test_leaks_are_named():
    chat = ChatFormat(tiny_recipe.word_tokenizer(tiny_recipe.WORDS))
    train = (record("red", "one"), record("blue", "two"))
    rows = measure_quality(
        [ClientData("anna", train, train[:1]), ClientData("ben", train[1:])], chat, 64
    )
    clients = [vars(each) for each in rows]
    said = interpret_diagnosis(
        {"clients": clients, "skipped": [], "max_length": 64, "passes": {"a": 2.0}}
    )
    assert any(s.startswith("LEAK: ") and "anna 1" in s for s in said)
    assert any("Records that other clients hold too: anna 1, ben 1" in s for s in said)


def test_real_five_domains(tmp_path, monkeypatch):
    recipe = REPOSITORY / "recipes" / "five_domains.toml"
    for name in re.findall(r"shared/data\}/(.+)\"", recipe.read_text()):
        data_file(name)
    monkeypatch.setenv("FEDSDR_DATA", str(DATA))
    code, _, said = invoke(recipe, "--no-model", "--out", tmp_path / "out")
    assert code == 0, said
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    held = {c["name"]: c for c in found["clients"]}
    assert list(held) == ["general", "code", "finance", "medicine", "math"]
    assert held["finance"]["checkable"] == held["math"]["checkable"] == 80
    assert held["general"]["left_out"] > 0
    assert 0.7 < found["apart"]["mean_js"]["mean"] < 0.9
