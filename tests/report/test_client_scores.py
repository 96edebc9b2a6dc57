"""The report's table of clients: their own models, and training alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.report import clients, labels, palette, text
from fedsdr.report.load import load_run
from support.report_folders import HOSTILE, minimal, read, score, write


def personal_table(folder: Path) -> clients.ClientScores | None:
    material = load_run(folder)
    return clients.client_table(
        material, palette.method_styles(method.name for method in material.methods)
    )


def test_clients_are_shown_one_by_one_over_the_seeds(comparison: Path) -> None:
    row = {"length": 5.0, "general": 80.0, "client_facts": 90.0, "base_style": 1.0}
    write(comparison / "seed-0" / "personal.json", {"remedy": row, HOSTILE: row})
    write(comparison / "seed-1" / "personal.json", {"remedy": row | {"client_facts": 94.0}})
    write(comparison / "seed-0" / "baselines" / "fedavg" / "personal.json", {"nobody": row})
    table = personal_table(comparison)
    assert table is not None
    (group,) = table.groups
    names = [column.metric.label for column in group.columns]
    assert names == ["Facts learnt", "Knowledge kept", "Answer length"]
    (remedy, cells), (hostile, single) = table.rows
    assert (remedy, hostile) == ("remedy", HOSTILE)
    assert (cells[0].text, cells[0].span) == ("92.0", "90.0\N{EN DASH}94.0")
    assert (single[0].text, single[0].span) == ("90.0", "")
    _, page = read(comparison)
    assert "Client by client" in page.text
    assert "Means over 2 seeds" in page.text
    assert "nobody" not in page.text  # another method's


def test_local_training_stands_beside_the_own_models(comparison: Path) -> None:
    summary = json.loads((comparison / "summary.json").read_text())
    summary["runs"] |= {"local": ["seed-0/baselines/local"]}
    write(comparison / "summary.json", summary)
    row = {"client_facts": 90.0, "length": 5.0, "general": 80.0}
    write(comparison / "seed-0" / "personal.json", {"remedy": row, "founder": row})
    local = {"remedy": row | {"client_facts": 99.0}}
    write(comparison / "seed-0" / "baselines" / "local" / "personal.json", local)
    table = personal_table(comparison)
    assert table is not None
    assert [(each.label, len(each.columns)) for each in table.groups] == [
        ("FedSDR", 3),
        ("Local only", 2),
    ]
    assert [cell.text for cell in table.rows[0][1]] == ["90.0", "80.0", "5.0", "99.0", "80.0"]
    assert [cell.text for cell in table.rows[1][1][3:]] == ["\N{EN DASH}"] * 2
    assert "Means over" not in table.note


def test_the_own_models_loss_stands_beside_the_global_one(tmp_path: Path) -> None:
    means = dict.fromkeys(("loss/a", "loss/b", "loss/c", "loss/e"), 2.0)
    methods = {"fedsdr": {name: score(mean, 1, None) for name, mean in means.items()}}
    methods["fedsdr"]["loss/c"]["n"] = 2  # of other seeds: no difference can be told
    minimal(tmp_path, methods=methods, runs={"fedsdr": ["."]})
    own = {"a": 1.5, "b": 2.25, "c": 1.0, "d": 3.0, "e": 2.5}
    write(tmp_path / "personal.json", {k: {"loss": v, f"loss/{k}": v} for k, v in own.items()})
    table = personal_table(tmp_path)
    assert table is not None
    dash, minus = text.EN_DASH, text.MINUS
    assert {name: tuple(cell.text for cell in cells) for name, cells in table.rows} == {
        "a": ("2.000", "1.500", f"{minus}0.500"),
        "b": ("2.000", "2.250", "+0.250"),
        "c": ("2.000", "1.000", dash),
        "d": (dash, "3.000", dash),
        "e": ("2.000", "2.500", "+0.500"),
    }
    assert "For 1 of 3 clients its loss is lower" in table.note
    alone = personal_table(minimal(tmp_path, runs={"fedsdr": ["."]}))
    assert alone is not None
    assert [column.metric.label for column in alone.groups[0].columns] == ["Held-out loss"]
    assert "loss" not in alone.note


def test_a_clients_two_losses_have_different_names() -> None:
    names = ("loss/a", "personal_loss/a")
    assert [labels.metric_label(name).label for name in names] == [
        "Held-out loss: a",
        "Held-out loss: a, own model",
    ]


def test_metrics_are_told_as_they_are_counted() -> None:
    assert labels.metric_label("length").unit == "words"
    assert "over all response tokens" in labels.metric_label("loss").words


@pytest.mark.parametrize("content", [None, {}, {"remedy": {}}])
def test_without_own_models_there_is_no_table(comparison: Path, content: Any) -> None:
    if content is not None:
        write(comparison / "seed-0" / "personal.json", content)
    assert "Client by client" not in read(comparison)[1].text
