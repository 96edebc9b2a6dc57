"""The evidence: what is planned, that cells are run once, and that verdicts follow from numbers."""

import csv
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments import plan, runner
from experiments.__main__ import app as main
from experiments.archive import ARCHIVE, unpack_cells
from experiments.chapter import Chapter, Figure, Table, format_estimate
from experiments.document import CHAPTERS, choose_experiments, write_document
from experiments.plan import EXPERIMENTS, QUICK, Cell, planned_cells
from experiments.results import Results, win_rate
from experiments.runner import (
    CELLS_FOLDER,
    cell_folder,
    groups_of,
    run_cells,
    run_group,
    run_groups,
)
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.core.statistics import Estimate, t_interval
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.load import override_recipe
from support.evidence_cells import fake, write
from support.experiment_commands import run_command
from support.repository import REPOSITORY
from support.tiny_lab import TABLES

ALL = planned_cells(EXPERIMENTS)


# What is planned


@pytest.mark.parametrize("cell", ALL, ids=lambda cell: cell.key)
def test_every_planned_cell_can_be_built(cell):
    recipe = cell.recipe(3)
    build_algorithm(recipe)
    assert recipe.seed == 3
    assert recipe.uses_lab


def test_a_cell_is_planned_once_and_named_by_what_is_no_default():
    keys = [cell.key for cell in ALL]
    assert len({*keys}) == len(keys)
    assert Cell("fedavg").key == Cell("fedavg", {"federation.rounds": 10}).key
    assert Cell("fedavg").key == Cell("fedavg", world={"lab.stubbornness": 0.5}).key
    assert Cell("fedavg").key != Cell("fedavg", {"federation.rounds": 9}).key
    assert Cell("fedsd+fedavgm").key.startswith("fedsd_fedavgm-")
    assert all(keys.count(cell.key) == 1 for cell in (Cell("fedavg"), Cell("fedsdr")))


def test_the_quick_form_is_a_part_of_the_whole_in_one_world():
    """Ten minutes on two cores: 13 cells for two seeds, and two base models."""
    for name, called in QUICK.items():
        assert {*called} <= EXPERIMENTS[name]().keys()
    quick = planned_cells(QUICK, quick=True)
    assert {cell.key for cell in quick} < {cell.key for cell in ALL}
    assert len(quick) == 13
    assert len({str(cell.recipe(0).lab) for cell in quick}) == 1


def test_groups_share_a_world_and_split_nothing_else():
    groups = groups_of(ALL)
    assert sorted(cell.key for group in groups for cell in group) == sorted(c.key for c in ALL)
    for group in groups:
        assert len({str(cell.recipe(0).lab) + str(cell.recipe(0).lora) for cell in group}) == 1


# Running cells


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab of four entities, in which a cell takes a tenth of a second."""
    base = plan.base_recipe()
    changes = {key: value for key, value in TABLES.items() if key not in ("seed", "options")}
    tiny = override_recipe(base, changes)
    monkeypatch.setattr(plan, "base_recipe", lambda *_: tiny)
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "out"


def test_a_killed_cell_does_not_go_on_with_another_base_model(small):
    folder = cell_folder(small, Cell("local"), 0)
    run_group(0, [(folder, Cell("local"))])
    found = json.loads((folder / "environment.json").read_text())
    found["identity"]["weights"] = "other"
    write(folder / "environment.json", found)
    with pytest.raises(UserError, match=r"base model has changed since .* in its weights"):
        run_group(0, [(folder, Cell("local"))])


def test_a_cell_leaves_its_metrics_its_answers_and_its_loss(small):
    cells = [Cell("fedavg"), Cell("local")]
    run_group(0, [(cell_folder(small, cell, 0), cell) for cell in cells])
    results = Results(small, [0, 1])
    assert [results.done(cell) for cell in cells] == [[0], [0]]
    metrics = results.metrics(cells[0], 0)
    answers = results.answers(cells[0], 0)
    facts = 3 * 4  # clients x entities; general knowledge comes after them
    true = 100 * sum(right for right, _ in answers[:facts]) / facts
    assert true == pytest.approx(metrics["client_facts"])
    general = answers[facts:]
    assert 100 * sum(right for right, _ in general) / len(general) == metrics["general"]
    assert metrics["response_loss"] > 0
    assert not results.has(cells[1], "response_loss"), "local training has no global model"
    assert results.estimate(cells[0], "client_facts") == {
        "n": 1, "mean": metrics["client_facts"], "low": None, "high": None,
    }  # fmt: skip


def test_cells_of_other_adapters_are_run_apart(small, monkeypatch):
    """Of which a group has loaded others: they would be trained with these."""
    cells = [Cell("fedavg"), Cell("fedavg", {"lora.rank": 1})]
    tasks = [(cell_folder(small, cell, 0), cell) for cell in cells]
    with pytest.raises(ValueError, match="cells of several worlds"):
        run_group(0, tasks)
    monkeypatch.setattr(runner, "worker_pool", ThreadPoolExecutor)  # where the lab is small, too
    run_groups([(0, cells)], small, 1, silent_reporter())
    ranks = []
    for folder, _ in tasks:
        settings = json.loads((folder / "global" / "adapter_config.json").read_text())
        ranks.append(settings["r"])
    assert ranks == [TABLES["lora"]["rank"], 1]


def test_finished_cells_are_left_alone(small, monkeypatch):
    cell = Cell("fedavg")
    folder = cell_folder(small, cell, 0)
    run_group(0, [(folder, cell)])
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(runner, "run_group", lambda *_: pytest.fail("nothing is left to run"))
    run_cells([cell], [0], small, 1, silent_reporter())
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_cell_that_was_run_by_other_defaults_is_not_taken_for_todays(small):
    cell = Cell("fedavg")
    folder = cell_folder(small, cell, 0)
    run_group(0, [(folder, cell)])
    run_cells([cell], [0], small, 1, silent_reporter())
    recipe = folder / "recipe.toml"
    recipe.write_text(re.sub("rectify_lr = .*", "rectify_lr = 0.5", recipe.read_text()))
    with pytest.raises(UserError, match=r"was run with another local.rectify_lr: give another"):
        run_cells([cell], [0], small, 1, silent_reporter())


def test_nothing_is_said_of_equal_facts_where_nothing_was_learnt(small):
    cell, other = Cell("fedavg"), Cell("fedprox")
    run_group(0, [(cell_folder(small, each, 0), each) for each in (cell, other)])
    results = Results(small, [0])

    def curve(cell: Cell, *points: tuple[float, float]) -> None:
        rows = [
            {"round": k, "train": {}, "eval": {"client_facts": x, "general": y}}
            for k, (x, y) in enumerate(points)
        ]
        files.write_json_lines(results.folder(cell, 0) / "metrics.jsonl", rows)

    curve(cell, (50.0, 100.0), (70.0, 90.0))
    curve(other, (50.0, 100.0), (60.0, 80.0))
    found = results.at_equal_facts(cell, other)
    assert found
    assert (found[0]["mean"], found[1]) == (15.0, 60.0)
    curve(other, (50.0, 100.0), (40.0, 60.0))
    assert results.at_equal_facts(cell, other) is None


# From numbers to verdicts


@pytest.mark.parametrize(
    ("a", "b", "rate"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 50.0),  # they never differ
        ([1, 1, 0, 0], [0, 0, 0, 0], 100.0),
        ([1, 0, 0, 1], [0, 1, 1, 0], 50.0),
        ([1, 1, 1, 0], [0, 0, 0, 1], 75.0),
    ],
)
def test_the_win_rate_is_among_questions_on_which_the_models_differ(a, b, rate):
    assert win_rate([(bool(x), 3) for x in a], [(bool(x), 9) for x in b]) == rate


ESTIMATE: Estimate = {"n": 5, "mean": 1.5, "low": 1.0, "high": 2.0}


def test_numbers_are_shown_with_half_of_their_interval():
    assert format_estimate(ESTIMATE) == "1.5 ± 0.5"
    assert format_estimate(ESTIMATE, 2, sign=True) == "+1.50 ± 0.50"
    assert format_estimate({"n": 1, "mean": 3.0, "low": None, "high": None}) == "3.0"
    assert format_estimate(None) == ""


# The document


def test_a_figure_has_its_data_beside_it(tmp_path):
    data = Table(["x", "y"], [["1", "2"], ["3", "a, b"]])
    figure = Figure("both", "Two points.", [lambda axes: axes.plot([1, 3], [2, 4])], data)
    figure.write(tmp_path)
    assert (tmp_path / "both.svg").read_text().lstrip().startswith("<?xml")
    with (tmp_path / "both.csv").open() as file:
        assert list(csv.reader(file)) == [["x", "y"], ["1", "2"], ["3", "a, b"]]


def test_the_document_has_a_chapter_an_experiment_and_all_verdicts(tmp_path):
    for index, cell in enumerate(ALL):
        for seed in range(3):
            fake(cell_folder(tmp_path, cell, seed), 30 + index % 40 + 0.1 * seed)
    path = write_document(tmp_path, [0, 1, 2], [*EXPERIMENTS])
    text = path.read_text()
    assert text.count("\n## ") == 1 + len(CHAPTERS) + 1  # verdicts, and real text
    results = Results(tmp_path, [0, 1, 2])
    chapters: list[Chapter] = [chapter(results) for chapter in CHAPTERS.values()]
    for claim in (claim for chapter in chapters for claim in chapter.claims):
        assert f"| {claim.text} | **{claim.verdict}** |" in text
    for figure in (figure for chapter in chapters for figure in chapter.figures):
        assert (tmp_path / "evidence" / f"{figure.name}.csv").exists()
        assert f"evidence/{figure.name}.svg" in text
    assert "nan" not in text
    assert "Not finished" not in text


def test_an_unfinished_folder_gives_a_document_too(tmp_path):
    text = write_document(tmp_path, [0], [*EXPERIMENTS]).read_text()
    assert "**open**" in text
    assert f"**Not finished: 0 of {len(ALL)} cells**" in text


def test_experiments_are_chosen_by_name_in_the_order_of_the_plan():
    assert choose_experiments("", quick=False) == [*EXPERIMENTS]
    assert sorted(choose_experiments("", quick=True)) == sorted(QUICK)
    with pytest.raises(UserError, match=r"'heterogeneity': choose from boosters, .* of --quick"):
        choose_experiments("heterogeneity", quick=True)
    assert choose_experiments("rivals,boosters", quick=False) == ["boosters", "rivals"]
    with pytest.raises(UserError, match="'boost': choose from boosters, "):
        choose_experiments("boost", quick=False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "a"], "expected whole numbers"),
        (["--seeds", "1,1"], "a seed given twice"),
        (["--only", "rivalry"], "choose from boosters"),
    ],
)
def test_the_command_refuses_what_it_cannot_run(tmp_path, words, told, capfd):
    assert run_command(main, "--out", tmp_path / "o", *words) == 2
    assert told in capfd.readouterr().err
    assert not (tmp_path / "o").exists()


# The committed document

DOCS = REPOSITORY / "docs"
COMMITTED = DOCS / "evidence" / "cells.csv"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_committed_document_is_what_its_archive_says(tmp_path):
    """Every verdict, table and number of every chapter but the one on real text, whose data are
    not in the archive."""
    unpack_cells(DOCS / "evidence" / ARCHIVE, tmp_path / CELLS_FOLDER)
    seeds = [0, 1, 2, 3, 4]
    assert len(Results(tmp_path, seeds).done(*ALL)) == len(seeds)
    written = write_document(tmp_path, seeds, [*EXPERIMENTS]).read_text(encoding="utf-8")
    committed = (DOCS / "evidence.md").read_text(encoding="utf-8")
    ours, theirs = (re.split(r"\n## 8\. ", text)[0] for text in (written, committed))
    real = ("| Rewrites are longer", "| Rewriting brings groups")
    left = [line for line in theirs.splitlines() if not line.startswith(real)]
    assert ours.splitlines() == left
    for path in sorted((DOCS / "evidence").glob("*.csv")):
        assert path.read_bytes() == (tmp_path / "evidence" / path.name).read_bytes(), path.name


@pytest.mark.slow(minutes=8)
@pytest.mark.timeout(600)
def test_a_cell_that_is_run_again_is_the_committed_one(tmp_path, monkeypatch):
    """FedAvg of seed 0, base model and all. Another machine, or number of threads, rounds
    differently and so trains another base model: one more draw, which must lie within the 95 %
    prediction interval of the committed seeds, or within `least` of their mean where these
    happen to agree. FedSD, for one, is 26 points of client facts away."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    committed = Cell("fedavg")
    cell = Cell("fedavg", {"evaluate.every": 0, "evaluate.personal": False})  # the end is compared
    metrics = {"client_facts": 8.0, "general": 8.0, "hallucination": 8.0, "length": 1.0}
    with COMMITTED.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["cell"] == committed.key]
    run_group(0, [(cell_folder(tmp_path, cell, 0), cell)])
    found = Results(tmp_path, [0]).metrics(cell, 0)
    for metric, least in metrics.items():
        spread = t_interval([float(row["value"]) for row in rows if row["metric"] == metric])
        assert spread["n"] >= 3
        assert spread["high"] is not None
        reach = (spread["high"] - spread["mean"]) * math.sqrt(spread["n"] + 1)
        assert found[metric] == pytest.approx(spread["mean"], abs=max(reach, least)), metric
