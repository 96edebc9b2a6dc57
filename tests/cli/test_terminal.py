"""Tables in the terminal: the summary, every table in a narrow one, output that goes elsewhere."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import fedsdr
from fedsdr.cli import diagnose
from fedsdr.cli.clients_table import print_clients
from fedsdr.cli.main import app
from fedsdr.core import files
from fedsdr.core.console import Grid, print_grid
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.deploy.sites.folder import ROSTER, RUN
from fedsdr.deploy.sites.status import print_status
from fedsdr.report import judgements
from fedsdr.report.judgements import View
from fedsdr.report.terminal import print_benchmarks, print_judging, print_summary
from support import tiny_recipe

ESTIMATE = {"n": 3, "mean": 50.25, "low": 48.25, "high": 52.25}
SUMMARY = {
    "methods": {
        "base": {"general": {"n": 1, "mean": 100.0, "low": None, "high": None}},
        "fedsd_verified": {"general": ESTIMATE, "personal_loss": ESTIMATE | {"mean": 1.23456}},
    },
    "claims": [{"verdict": "fails", "claim": "A beats [b]", "words": "-1.0"}],
}


def shown(width: int) -> str:
    console = Console(width=width, record=True, quiet=False, file=None)
    with console.capture() as capture:
        print_summary(SUMMARY, console)
    return capture.get()


@pytest.mark.parametrize("width", [60, 200])
def test_every_method_and_claim_is_shown(width):
    text = shown(width)
    assert "base" in text
    assert "fedsd_verified" in text
    assert "50.2" in text
    assert "1.23" in text
    assert "FAILS: A beats [b]. -1.0" in text


def test_intervals_where_there_is_room_and_more_than_one_seed():
    assert "50.2 ± 2.0" in shown(200)
    assert "100.0 ±" not in shown(200)
    assert "±" not in shown(60)


def test_columns_that_no_method_has_are_left_out():
    assert "halluc" not in shown(200)


# Every table in a narrow terminal

NARROW = 40
LONG = "a-client-with-a-name-that-is-longer-than-a-telephone-is-wide"


def holdings(folder: Path) -> list[str]:
    """As `check` and `diagnose` print them."""
    cells = [LONG, *["123456"] * 8, "closed_qa 3, information_extraction 1"]
    print_clients(diagnose.HEADS, [cells])
    return [LONG, "records: 123456", "leaked: 123456", "closed_qa 3", "information_extraction 1"]


def summary(folder: Path) -> list[str]:
    print_summary(SUMMARY | {"methods": {LONG: dict.fromkeys(ALL_COLUMNS, ESTIMATE)}})
    return [LONG, "changed: 50.2", "own facts: 50.2", "own loss: 50.2"]


def judging(folder: Path) -> list[str]:
    rows = (judgements.JudgementRow(LONG, "1234", "50.0", "40.0 to 60.0"),)
    view = View(f"global against {LONG}", "win rate of global, %", rows, (), ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judgements, "judging_view", lambda judging: view)
        print_judging({})
    return [LONG, "number: 1234", "win rate of global, %: 50.0", "95 % interval: 40.0 to 60.0"]


def benchmarks(folder: Path) -> list[str]:
    mean = {"mean": 0.5, "stderr": 0.1}
    difference = {"acc": {"mean": 0.1, "low": -0.05, "high": 0.25}}
    row = {
        "model": f"client:{LONG}", "task": "truthfulqa", "metrics": {"acc": mean},
        "questions": 1234, "to_base": difference, "truncated": 0,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsdr.report.benchmarks.shortened_prompts", lambda results: [])
        print_benchmarks({"results": [row]})
    return [f"client:{LONG}", "score: 50.0 ± 10.0", "to the base model: +10.0 (-5.0 to +25.0)"]


def status(folder: Path) -> list[str]:
    (folder / RECIPE_FILE).write_text("model.path = 'lab'\n")
    files.write_json(folder / ROSTER, {"clients": {LONG: None}})
    train = {"bytes_up": 2**30, "bytes_down": 2**30, "seconds": 1.0}
    row = {"round": 1, "clients": [LONG], "absent": {LONG: "no answer in time"}, "train": train}
    files.write_json_lines(folder / RUN / "metrics.jsonl", [row])
    print_status(folder)
    return [LONG, "MiB of updates: 1024.0", "last absence: round 1: no answer in time"]


def plan(folder: Path) -> list[str]:
    recipe = tiny_recipe.write_recipe(folder)
    done = CliRunner().invoke(app, ["run", str(recipe), "--dry-run", "--flops", "1e12"])
    print(done.stdout)
    return ["anna", "response tokens: ", "held out: ", "a client: ", "rounds: 3"]


def algorithms(folder: Path) -> list[str]:
    print(CliRunner().invoke(app, ["algorithms"]).stdout)
    return ["federation.algorithm", "fedprox", "clients are pulled towards the global adapter",
            "mu = 0.01", "McMahan et al. 2017, arXiv 1602.05629"]  # fmt: skip


ALL_COLUMNS = ("client_facts", "changed_facts", "general", "loss", "personal_client_facts",
               "personal_loss")  # fmt: skip
TABLES = (holdings, summary, judging, benchmarks, status, plan, algorithms)


@pytest.mark.parametrize("table", TABLES)
def test_in_a_narrow_terminal_nothing_is_cut_and_nothing_too_wide(
    table: Callable[[Path], list[str]], tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", str(NARROW))
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    parts = table(tmp_path)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= NARROW, shown
    together = "".join(shown.split())  # as if no line were broken
    assert [part for part in parts if "".join(part.split()) not in together] == []
    assert "…" not in shown


def test_a_table_is_one_where_it_fits():
    grid = Grid(("client", "n", "of"), [("a[b]", "12", "red and green and blue " * 5)], wraps=True)

    def lines(width: int) -> list[str]:
        console = Console(width=width)
        with console.capture() as capture:
            print_grid(grid, console)
        return [line.strip() for line in capture.get().splitlines() if line.strip()]

    assert lines(34)[0].split() == ["client", "n", "of"]
    assert lines(34)[2].split()[:3] == ["a[b]", "12", "red"]
    assert lines(33)[:3] == ["a[b]", "n: 12", "of: red and green and blue red"]


def test_every_table_is_made_in_one_place():
    """Or in `algorithms`, tested above: a table of rich's own cuts what does not fit."""
    root = Path(fedsdr.__file__).parent
    makers = {p.relative_to(root).as_posix() for p in root.rglob("*.py")
              if "rich.table" in p.read_text(encoding="utf-8")}  # fmt: skip
    assert makers == {"core/console.py", "cli/look.py"}


@pytest.mark.parametrize("command", ["version", "algorithms", "--help"])
def test_a_reader_that_has_left_is_no_defect(command):
    """As in `fedsdr algorithms | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fedsdr", command], stdout=writing,
        stderr=subprocess.PIPE, text=True, timeout=100, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode in (0, 1)
    assert done.stderr == ""
