"""What benchmarks measure and how docs/performance.md tells it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import cohort
import goals
import lengths
import measure
import shapes
import tables
from fedsdr.core import environment
from support.tiny_recipe import write_recipe


def test_the_document_says_what_the_results_say():
    document = tables.DOCUMENT.read_text(encoding="utf-8")
    assert tables.rendered(document) == document, "run python benchmarks/tables.py"
    assert len(tables.MARKED.findall(document)) == document.count("<!-- table ")


def test_every_result_is_told():
    marked = tables.MARKED.findall(tables.DOCUMENT.read_text(encoding="utf-8"))
    for path in measure.RESULTS.glob("*.json"):
        stored = measure.load(path.stem)
        assert {(path.stem, table) for table in stored["tables"]} <= set(marked)
        assert stored["machine"]["processor"]
        assert stored["machine"]["threads"] >= 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def working(
    clock: list[float], seconds: list[float], told: list[str], name: str
) -> measure.Contender:
    def work() -> float:
        told.append(name)
        clock[0] += seconds.pop(0)
        return 12.0

    return work


def test_contenders_take_turns_and_ratios_are_within_a_turn(clock):
    """The machine gets three times as slow in the second turn: the ratio stays."""
    told: list[str] = []
    contenders: dict[str, Callable[[], float]] = {
        "ours": working(clock, [9.0, 1.0, 3.0, 1.0], told, "ours"),
        "theirs": working(clock, [9.0, 2.0, 6.0, 4.0], told, "theirs"),
    }
    ours, theirs = measure.compare("here", contenders, "tokens", against="theirs", runs=3)
    assert told == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert ours == {
        "setting": "here", "contender": "ours", "tokens/s": 12.0, "slowest": 4.0, "fastest": 12.0,
        "times": 2.0, "least": 2.0, "most": 4.0,
    }  # fmt: skip
    assert (theirs["tokens/s"], theirs["times"], theirs["least"], theirs["most"]) == (3.0, 1, 1, 1)


def test_a_result_is_written_and_rendered(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    rows: list[measure.Row] = [{"a": "x", "b": 1234}, {"a": "y", "c": 0.5}]
    document = "before\n<!-- table some/thing -->\nold\n<!-- end -->\nafter\n"
    measure.save("some", {"thing": rows}, quick=True)
    assert "Not measured yet: `python benchmarks/some.py`" in tables.rendered(document)
    measure.save("some", {"thing": rows})
    lines = tables.rendered(document).splitlines()
    assert lines[:6] == [
        "before", "<!-- table some/thing -->", "| a | b | c |", "| --- | --- | --- |",
        "| x | 1,234 |  |", "| y |  | 0.5 |",
    ]  # fmt: skip
    assert measure.processor() in lines[7]
    assert lines[8:] == ["<!-- end -->", "after"]
    assert tables.rendered("\n".join(lines)) == "\n".join(lines)


TRL = pytest.mark.skipif(find_spec("trl") is None, reason="trl comes with fedsdr[bench]")
SCRIPTS = (
    "gpu.py --device cpu --tiny",
    "rewriting.py --quick --only fp32",
    pytest.param("training.py --quick", marks=TRL),
)


@pytest.mark.slow
@pytest.mark.parametrize("command", SCRIPTS)
def test_a_script_runs_in_miniature(command):
    """And keeps nothing."""
    before = sorted(measure.RESULTS.glob("*"))
    folder = measure.RESULTS.parent
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert all(rows for rows in result["tables"].values())
    assert sorted(measure.RESULTS.glob("*")) == before


def test_a_table_of_words_counts_where_it_is_a_product_too():
    block = 64 * (64 + 2 * 32 + 64 + 3 * 128)  # q, k and v of two heads, o, the MLP
    model = shapes.random_model("tiny", torch.float32, "meta")
    assert shapes.product_weights(model) == 2 * block + 256 * 64
    tied = shapes.random_model("SmolLM2-135M", torch.float32, "meta")
    assert shapes.product_weights(tied) == sum(p.numel() for p in tied.parameters() if p.dim() == 2)


def test_cohorts_are_measured_on_any_recipe(tmp_path, monkeypatch, capsys):
    """In a second on a tiny model: the lab's would first be pretrained."""
    monkeypatch.setattr(cohort, "RECIPE", write_recipe(tmp_path))
    monkeypatch.setattr(sys, "argv", ["cohort.py", "--quick"])
    cohort.main()
    found = json.loads(capsys.readouterr().out)["tables"]
    assert [row["contender"] for row in found["speed"]][-1] == "8 at once"
    assert found["memory"][0]["clients' MiB (estimate)"] > 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it there")
def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it():
    held = bytearray(2**30)
    done = subprocess.run(
        [sys.executable, "-c", "import measure; print(measure.peak())"],
        cwd=measure.RESULTS.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(held) / 2**20 < measure.peak()
    assert 10 < float(done.stdout) < len(held) / 2**20


def test_results_do_not_make_a_checkout_a_changed_one(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("")
    results = tmp_path / "results"
    results.mkdir()
    (results / "one.json").write_text("{}")
    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "all")
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    clean = environment.git_commit()
    assert clean is not None
    (results / "one.json").write_text("{1}")
    (results / "two.json").write_text("{}")
    assert environment.git_commit() == f"{clean}+"
    assert environment.git_commit(apart="results") == clean
    (package / "code.py").write_text("changed")
    assert environment.git_commit(apart="results") == f"{clean}+"


@pytest.mark.parametrize(
    ("limits", "values", "met"),
    [
        ({"least": 1}, [1.0, 2.0], "yes"),
        ({"least": 1}, [0.9, 2.0], "1 of 2"),
        ({"most": 1}, [2.0, 2.0], "no"),
        ({"least": 1}, [None, 2.0], "1 of 2"),
        ({"least": 1}, [None, None], "not measured"),
        ({"alike": 1.01}, [100.0, 100.9], "yes"),
        ({"alike": 1.01}, [100.0, 102.0], "no"),
    ],
)
def test_a_goal_is_met_by_all_of_its_figures(limits, values, met):
    assert goals.Goal("fast", (), **limits).met(values) == met


def test_every_goal_finds_its_figures_in_what_has_been_measured():
    """A figure that is not there is of a table or a row that its script has not written yet."""
    for goal in goals.GOALS:
        for figure in goal.figures:
            path = measure.RESULTS / f"{figure.name}.json"
            table = measure.load(figure.name)["tables"].get(figure.table) if path.exists() else None
            known = {value for row in table or [] for value in row.values()}
            if set(figure.row.values()) <= known:
                assert table is None or figure.value() is not None, figure


def test_a_table_is_measured_again_only_while_it_is_of_the_faulty_script(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(goals, "AGAIN", {("some", "thing"): ("abc+", "it was wrong")})
    monkeypatch.setattr(measure, "git_commit", lambda apart: "abc+")
    measure.save("some", {"thing": [{"a": 1}], "other": [{"a": 1}]})
    assert "measured again: it was wrong." in tables.section("some", "thing")
    assert "again" not in tables.section("some", "other")
    monkeypatch.setattr(measure, "git_commit", lambda apart: "abd")
    measure.save("some", {"thing": [{"a": 1}]})
    assert "again" not in tables.section("some", "thing")


def test_synthetic_lengths_have_the_quantiles_of_the_real_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lengths, "DATA", tmp_path)
    drawn = lengths.records(4000)
    assert "set FEDSDR_DATA" in capsys.readouterr().err
    for name, wanted in lengths.QUANTILES.items():
        assert tuple(lengths._quantile(name, rank) for rank in lengths.RANKS) == wanted
        values = [getattr(each, name) for each in drawn]
        assert wanted[0] <= min(values) < wanted[1]
        assert wanted[5] < max(values) <= wanted[6]
        assert sum(value <= wanted[3] for value in values) == pytest.approx(2000, abs=200)


@pytest.mark.parametrize(("value", "told"), [(0.012345, 0.0123), (98.76, 98.8), (12345.6, 12346)])
def test_three_digits_count(value, told):
    assert measure.three(value) == told
