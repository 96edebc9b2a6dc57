"""report.html while a run is going on: what it shows, what it costs, and when it fails."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsdr.core.progress import Reporter, silent_reporter
from fedsdr.federation.in_process import InProcessEngine
from fedsdr.recipe.load import override_recipe
from fedsdr.report.html import write_report
from fedsdr.workflows import live_report
from fedsdr.workflows.live_report import LiveReport
from fedsdr.workflows.run import compare_seeds, run_recipe
from support.finished_runs import read_json

THREE = {"baselines": ["base", "local"], "evaluate.every": 1}


@pytest.fixture(autouse=True)
def whatever_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_report, "COST_LIMIT", 1e9)


def killed_at(monkeypatch: pytest.MonkeyPatch, method: str, round: int) -> None:
    """Interrupt the process when a method's clients begin to train in a round."""
    trained = InProcessEngine.run_round

    def run_round(engine: InProcessEngine, *args: Any, **options: Any) -> Any:
        if (engine.method.name, args[2]) == (method, round):
            raise KeyboardInterrupt
        return trained(engine, *args, **options)

    monkeypatch.setattr(InProcessEngine, "run_round", run_round)


def page_of(folder: Path) -> str:
    return " ".join((folder / "report.html").read_text(encoding="utf-8").split())


def test_a_run_killed_in_the_middle_says_what_is_missing(recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        killed_at(patch, "local", 3)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(override_recipe(recipe, THREE), out, silent_reporter())
    page = page_of(out)
    assert "Still to come: local: 2 of 3 rounds are done; then FedSDR." in page
    assert '<meta http-equiv="refresh" content="60">' in page
    assert "Base model" in page  # is finished, and has its row in the table
    assert not (out / "summary.json").exists()
    write_report(out)  # `fedsdr report` needs no more than the files
    assert page_of(out) == page
    run_recipe(override_recipe(recipe, THREE), out, silent_reporter(), resume=True)
    assert "Still to come" not in page_of(out)
    assert "http-equiv" not in page_of(out)


def test_a_comparison_names_the_seeds_to_come(recipe, tmp_path, monkeypatch):
    killed_at(monkeypatch, "fedsdr", 2)
    each_round = override_recipe(recipe, {"evaluate.every": 1})
    with pytest.raises(KeyboardInterrupt):
        compare_seeds(each_round, [4, 10, 11], tmp_path, silent_reporter())
    assert "seed 4: FedSDR: 1 of 3 rounds are done; then seed 10 and seed 11." in page_of(tmp_path)
    assert "come: FedSDR: 1 of 3 rounds are done. This" in page_of(tmp_path / "seed-4")


def test_a_report_that_fails_ends_no_run(recipe, tmp_path, monkeypatch):
    def broken(*_: Any) -> None:
        raise MemoryError("put in by the test")

    monkeypatch.setattr(live_report, "write_report", broken)
    said = io.StringIO()
    run_recipe(override_recipe(recipe, THREE), tmp_path / "out", Reporter(Console(file=said)))
    assert said.getvalue().count("the live report failed and stops") == 1
    assert "MemoryError: put in by the test" in " ".join(said.getvalue().split())
    assert read_json(tmp_path / "out" / "summary.json")["methods"].keys() == {
        "base", "local", "fedsdr",
    }  # fmt: skip
    assert "Still to come" not in page_of(tmp_path / "out")


def test_a_run_killed_before_its_summary_goes_on(recipe, tmp_path):
    """The report of a run that is not summarised is no sign that it has ended."""
    short = override_recipe(recipe, {"federation.rounds": 0})
    summary = run_recipe(short, tmp_path, silent_reporter())
    (tmp_path / "summary.json").unlink()
    write_report(tmp_path)
    assert "Still to come: the summary." in page_of(tmp_path)
    again = run_recipe(short, tmp_path, silent_reporter(), resume=True)
    assert again["methods"] == summary["methods"]
    assert "Still to come" not in page_of(tmp_path)


def test_reports_take_a_small_share_of_the_time(monkeypatch):
    """Each takes 3 s here, and at most a fiftieth of the time: the next is due after 150 s."""
    now, written = [0.0], []

    def write(folder: Path, summary: object) -> None:
        written.append(now[0])
        now[0] += 3

    monkeypatch.setattr(live_report, "COST_LIMIT", 0.02)
    monkeypatch.setattr(live_report, "interim_summary", lambda folder: {})
    monkeypatch.setattr(live_report, "write_report", write)
    live = LiveReport([Path("run")], silent_reporter(), clock=lambda: now[0])
    for moment, row in ((0, {"eval": {}}), (100, {"eval": {}}), (152, {"eval": {}}),
                        (153, {"train": {}}), (154, {"eval": {}})):  # fmt: skip
        now[0] = moment
        live.observe({"round": 0, **row})
    assert written == [0, 154]
