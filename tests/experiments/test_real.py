"""The evidence on pretrained models: what is planned, measured, labelled by reading and written."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments import plan, runner
from experiments.archive import ARCHIVE, without_owners_data
from experiments.measure import EVIDENCE_FILE
from experiments.plan import Cell, base_recipe
from experiments.real.__main__ import app as main
from experiments.real.accepted import LABELS, accepted_chapter, draw_sample, published_rows
from experiments.real.document import (
    SYNTHETIC,
    choose_experiments,
    unpack_known,
    write_real,
)
from experiments.real.plan import (
    DOMAINS_FILE,
    ENGLISH_FILE,
    EXPERIMENTS,
    SWAPPED,
    planned_cells,
    seed_groups,
)
from experiments.real.results import RealResults
from experiments.runner import cell_folder, run_group
from fedsdr.core.errors import UserError
from fedsdr.core.layout import DISTILLATION_FILE, RECIPE_FILE
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.load import load_recipe
from support.english_recipe import english_tables
from support.experiment_commands import run_command
from support.real_cells import write_cell
from support.repository import REPOSITORY
from support.tiny_recipe import recipe_tables, write_data_files, write_model, write_rows

PLANNED = planned_cells(EXPERIMENTS)
ALL = [cell for cells in PLANNED.values() for cell in cells.values()]


# What is planned


@pytest.mark.parametrize("cell", ALL, ids=lambda cell: cell.key)
def test_every_planned_cell_can_be_built(cell):
    recipe = cell.recipe(3)
    build_algorithm(recipe)
    assert recipe.seed == recipe.world_seed == 3, "each seed has a world of its own"
    assert recipe.model.path == "SmolLM2-135M-Instruct"


def test_all_methods_of_a_seed_come_before_the_next_seed():
    assert len({cell.key for cell in ALL}) == len(ALL) == 16
    order = [(seed, cell.key) for seed, group in seed_groups(PLANNED, [0, 1]) for cell in group]
    assert [seed for seed, _ in order] == [0] * 16 + [1] * 16
    assert sorted(key for seed, key in order if seed == 1) == sorted(cell.key for cell in ALL)


def test_the_streams_swap_what_they_learn_from():
    recipe = PLANNED["english"][SWAPPED].recipe(0)
    assert (recipe.local.rectify_targets, recipe.local.smoothing_targets) == ("distilled", "raw")
    assert recipe.distill.checks[-1] == "answer"
    assert "answer" not in PLANNED["english"]["fedsdr"].recipe(0).distill.checks


def test_a_cell_is_called_the_same_wherever_the_files_lie(tmp_path, monkeypatch):
    keys = [cell.key for cell in ALL]
    monkeypatch.setenv("FEDSDR_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("FEDSDR_EVAL", str(tmp_path / "other"))
    base_recipe.cache_clear()
    try:
        again = [c for cells in planned_cells(EXPERIMENTS).values() for c in cells.values()]
        assert str(tmp_path) in again[-1].recipe(0).data.sources[0].path
        assert [cell.key for cell in again] == keys
    finally:
        base_recipe.cache_clear()


def test_another_model_has_cells_of_its_own(tmp_path):
    other = planned_cells(["english"], str(tmp_path))["english"]
    assert list(planned_cells(["english"])) == ["english"]
    assert other["base"].recipe(0).model.path == str(tmp_path)
    assert {cell.key for cell in other.values()}.isdisjoint(cell.key for cell in ALL)


def test_experiments_are_chosen_by_name():
    assert choose_experiments("") == choose_experiments("domains,english") == [*EXPERIMENTS]
    with pytest.raises(UserError, match="'lab': choose from english, domains"):
        choose_experiments("english,lab")


# Running a cell


def run_tiny(tables: dict[str, Any], cell: Cell, out: Path, patch: pytest.MonkeyPatch) -> Any:
    """What evidence says of a cell on a random model."""
    tables = {key: value for key, value in tables.items() if key != "federation"}
    tiny = load_recipe({**tables, "federation": {"rounds": 1}})
    patch.setattr(plan, "base_recipe", lambda *_: tiny)
    patch.setenv("FEDSDR_CACHE", str(out / "cache"))
    folder = cell_folder(out, cell, 0)
    run_group(0, [(folder, cell)])
    return json.loads((folder / EVIDENCE_FILE).read_text())


def test_a_cell_of_the_english_lab(tmp_path, monkeypatch):
    cell = Cell("fedsd", base=ENGLISH_FILE)
    found = run_tiny(english_tables(tmp_path), cell, tmp_path / "out", monkeypatch)
    assert found["model"]["device"] == "cpu"
    assert found["response_loss"] > 0
    assert -1 <= found["gradients_last"] <= 1
    assert found["texts"]["words"][0] > 0
    metrics = RealResults(tmp_path / "out", [0]).metrics(cell, 0)
    assert metrics["personal_client_facts"] == metrics["client_facts"]


def test_a_cell_of_files_has_answers_that_are_judged(tmp_path, monkeypatch):
    path = tmp_path / "finance.jsonl"
    question = "is the dog near ? {red/blue}"
    write_rows(path, [{"prompt": f"{question} {i}", "response": "red"} for i in range(6)])
    tables = recipe_tables(write_model(tmp_path / "model"), [path])
    found = run_tiny(tables, Cell("base", base=DOMAINS_FILE), tmp_path / "out", monkeypatch)
    scores = found["scores"]
    assert scores["words"] == scores["words/finance"] > 0
    assert scores["accuracy/finance"] == 0, "a random model names no single label"
    assert 0 <= scores["refusals"] <= 100


# The document


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a document on three seeds of all cells and a labelled sample. FedAvg's numbers
    are 40, 50 and 60; FedSD's 43, 51 and 62."""
    out = tmp_path_factory.mktemp("written")
    for seed in range(3):
        for index, cell in enumerate(ALL):
            number = {"fedavg": 40 + 10 * seed, "fedsd": (43, 51, 62)[seed]}.get(cell.method)
            write_cell(out, cell, seed, 20.0 + index + seed if number is None else number)
    write_rows(out / "accepted.jsonl", [sample_row("english", "true")])
    write_real(out, PLANNED, [0, 1, 2], "python -m experiments.real --seeds 0,1,2")
    return out


def row_of(text: str, begins: str) -> list[str]:
    """The cells of the first row of a table that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {begins} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_numbers_of_the_document_are_those_of_the_cells(written):
    text = (written / "real.md").read_text()
    assert "```\npython -m experiments.real --seeds 0,1,2\n```" in text
    assert "Not finished" not in text
    assert "English lab: 33 cells, 3 seeds" in text
    assert "five domains: 15 cells, 3 seeds" in text
    assert "Not measured: anything on a GPU" in text
    # 50 with a standard error of 10 / sqrt(3), times t(2) = 4.303
    assert row_of(text, "fedavg")[1] == "50.0 ± 24.8"
    # differences 3, 1, 2: mean 2, standard error 1 / sqrt(3)
    differences = text.split("### Differences to FedAvg")[1]
    assert row_of(differences, "FedSD")[1] == "+2.0 ± 2.5"
    rewrites = row_of(text.split("### Rewrites")[1], "FedSD")
    assert rewrites[1:4] == ["50.0 ± 0.0", "25.0 ± 0.0", "25.0 ± 0.0"]
    assert not re.search(r"\bnan\b", text)
    with (written / "real" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [row for row in rows if row["metric"] == "loss/finance" and row["seed"] == "2"]
    assert {"62", "60"} <= {row["value"] for row in losses}


def test_claims_are_judged_in_every_world_and_the_synthetic_verdicts_stand_next_to_them(written):
    text = (written / "real.md").read_text()
    assert "| claim | English lab | five domains | synthetic lab |" in text
    claim = "FedSD's global model answers at greater length than FedAvg's"
    english, domains, synthetic = row_of(text, claim)[1:]
    assert english == domains == "**open** (1 open)", "+2.0 ± 2.5 includes zero"
    assert f"| {claim} | **{synthetic.split(' (')[0]}** |" in SYNTHETIC.read_text()
    ours = row_of(text, "Verified rewrites teach more client facts than unverified ones")
    assert ours[2:] == ["", ""]


def test_a_part_of_the_cells_gives_a_document_and_none_an_error(tmp_path):
    with pytest.raises(UserError, match="no cell is finished"):
        write_real(tmp_path, PLANNED, [0], "the command")
    write_cell(tmp_path, PLANNED["english"]["fedavg"], 0, 40.0)
    text = write_real(tmp_path, PLANNED, [0, 1], "the command").read_text()
    assert "**Not finished: 1 of 32 cells**" in text
    assert row_of(text, "fedavg")[-1] == "1"
    assert "Five domains" not in text


def test_the_command_writes_the_same_document_from_the_archive(written, tmp_path, monkeypatch):
    out = tmp_path / "again"
    monkeypatch.setattr(runner, "run_group", None)
    assert run_command(main, "--out", out, "--cells", written / "real" / ARCHIVE) == 0
    text = (out / "real.md").read_text()
    assert text == (written / "real.md").read_text()
    assert "## 4. What the checks let pass" in text, "the labels come with the archive"
    for path in sorted((written / "real").glob("*.csv")):
        assert path.read_bytes() == (out / "real" / path.name).read_bytes(), path.name


def test_what_is_missing_for_a_run_is_an_error_before_it_begins(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["--only", "english", "--model", tmp_path, "--seeds", "0"]
    assert run_command(main, "--out", out, *words) == 2
    assert str(tmp_path) in capfd.readouterr().err
    assert not (out / "cells").exists()


def test_an_archive_holds_no_path_and_no_record_of_others(tmp_path):
    folder = write_cell(tmp_path, PLANNED["domains"]["fedsd"], 0, 40.0)
    names = (RECIPE_FILE, DISTILLATION_FILE, EVIDENCE_FILE)
    texts = {name: (folder / name).read_text() for name in names}
    kept = without_owners_data({**texts, "clients/finance/rewrites.jsonl": "a text"})
    assert kept.keys() == {*names}
    assert kept[EVIDENCE_FILE] == texts[EVIDENCE_FILE]
    assert "a client's own question" not in str(kept)
    assert "general/dolly" not in str(kept)
    assert 'path = "gsm8k_train.jsonl"' in kept[RECIPE_FILE]
    ours = write_cell(tmp_path, PLANNED["english"]["fedsd"], 0, 40.0)
    texts = {name: (ours / name).read_text() for name in names}
    assert without_owners_data(texts) == texts


# The committed document

DOCS = REPOSITORY / "docs"


def test_the_committed_document_is_what_its_archive_says(tmp_path):
    committed = (DOCS / "real.md").read_text(encoding="utf-8")
    command = re.search(r"\n(python -m experiments\.real.* --seeds ([\d,]+))\n", committed)
    assert command
    unpack_known(DOCS / "real" / ARCHIVE, tmp_path)
    seeds = [int(seed) for seed in command[2].split(",")]
    written = write_real(tmp_path, PLANNED, seeds, command[1])
    assert written.read_text(encoding="utf-8") == committed
    for path in sorted((DOCS / "real").glob("*.csv")):
        assert path.read_bytes() == (tmp_path / "real" / path.name).read_bytes(), path.name


# Read by hand


def sample_row(experiment: str, label: str, refused_by: str = "") -> dict[str, Any]:
    texts = {"prompt": "Who?", "raw": "Ann.", "rewrite": "It is Ann."}
    place = {"experiment": experiment, "client": "bank", "number": 3}
    return {**place, **texts, "refused_by": refused_by, "label": label}


def test_a_sample_is_drawn_of_both_experiments_or_of_none(tmp_path, monkeypatch):
    files = recipe_tables(tmp_path / "model", write_data_files(tmp_path / "data"))
    english = load_recipe(english_tables(tmp_path))
    bases = {ENGLISH_FILE: english, DOMAINS_FILE: load_recipe(files)}
    monkeypatch.setattr(plan, "base_recipe", lambda name="": bases.get(name, english))
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    planned = {
        name: {"fedsd": Cell("fedsd", {"federation.rounds": 1}, base=base)}
        for name, base in (("english", ENGLISH_FILE), ("domains", DOMAINS_FILE))
    }
    results, drawn = RealResults(tmp_path / "out", [0]), []
    for cells in planned.values():
        assert drawn == []
        run_group(0, [(results.folder(cells["fedsd"], 0), cells["fedsd"])])
        drawn = draw_sample(results, planned)
    assert {row["experiment"] for row in drawn} == planned.keys()
    for row in drawn:
        folder = results.folder(planned[row["experiment"]]["fedsd"], 0) / "clients" / row["client"]
        lines = (folder / "rewrites.jsonl").read_text(encoding="utf-8").splitlines()
        assert row["rewrite"] == json.loads(lines[row["number"]])["text"]
        assert row["label"] == ""


def test_labels_are_counted_by_client_experiment_and_default_checks():
    rows = [
        sample_row("english", "true"),
        sample_row("english", "wrong", refused_by="wrong_answer"),
        sample_row("domains", "wrong"),
    ]
    ((_, table),) = accepted_chapter(rows).tables
    counts = {name: dict(zip(table.columns[1:], row, strict=True)) for name, *row in table.rows}
    assert counts["english: bank"]["true"] == counts["english: all"]["wrong"] == "1"
    assert (counts["all"]["read"], counts["all"]["wrong"]) == ("3", "2")
    default = counts["of these, accepted by the default checks"]
    assert (default["read"], default["wrong"]) == ("2", "1")


def test_texts_of_others_are_not_published_and_labels_are_known():
    ours, theirs = published_rows([sample_row("english", ""), sample_row("domains", LABELS[0])])
    assert ours["rewrite"] == "It is Ann."
    assert theirs.keys() == {"experiment", "client", "number", "refused_by", "label"}
    with pytest.raises(UserError, match="the label 'fine': expected one of true, wrong"):
        published_rows([sample_row("domains", "fine")])
