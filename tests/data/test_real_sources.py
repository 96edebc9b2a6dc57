"""The five domains of real data, where they are present: every row is read or named."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.partition import build_clients, describe_clients
from fedsdr.data.records import Record
from fedsdr.data.sources import read_rows, read_source
from fedsdr.recipe.sections.data import Data, Source, Split
from support.real_data import data_file

SENTIMENT = (
    "What is the sentiment of this news? Please choose an answer from "
    "{{negative/neutral/positive}}.\n\n{content}"
)


def read(path: Path, **options: Any) -> list[Record]:
    return read_source(Source(path=str(path), **options), seed=0).records


def message(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    return str(caught.value)


def without_empty(path: Path, response: str, tmp_path: Path) -> Path:
    """A copy of a JSON list without the rows whose response is empty."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    copy = tmp_path / path.name
    copy.write_text(json.dumps([row for row in rows if row[response].strip()]), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("client", "rows", "empty"),
    [
        (0, 826, ()),
        (1, 967, ()),
        (2, 3840, (782, 922)),
        (4, 2280, ()),
        (5, 4204, ()),
        (6, 2129, (819,)),
        (7, 3573, ()),
        (8, 2115, ()),
        (9, 774, ()),
    ],
)
def test_real_general(client, rows, empty, tmp_path):
    path = data_file(f"general/dolly_alpaca_clients/local_training_{client}.json")
    assert len(read_rows(Source(path=str(path)))[1]) == rows
    if empty:
        assert f"row {empty[0]}: no response (column 'response' is empty)" in message(path)
        path = without_empty(path, "response", tmp_path)
    found = read(path)
    assert len(found) == rows - len(empty)
    assert all(record.category for record in found)


def test_real_general_history():
    found = read(data_file("general/lima_train.json"))
    assert len(found) == 1029
    assert sum(len(record.prompt) > 1 for record in found) == 29


def test_real_code(tmp_path):
    path = data_file("code/code_alpaca_2k.json")
    assert len(read_rows(Source(path=str(path)))[1]) == 2017
    said = message(path)
    assert "row 238: no response (column 'output' is empty); 1 more row" in said
    assert "(row 1860)" in said
    assert len(read(without_empty(path, "output", tmp_path))) == 2015


def test_real_finance():
    path = data_file("finance/financial_phrasebank.csv")
    fields = {"instruction": SENTIMENT, "response": "label"}
    assert "financial_phrasebank.csv:2106: not utf-8" in message(path, fields=fields)
    found = read(path, fields=fields, encoding="latin-1", category="finance")
    assert len(found) == 4846
    assert {record.response for record in found} == {"negative", "neutral", "positive"}
    with path.open(encoding="latin-1", newline="") as handle:
        label, content = list(csv.reader(handle))[1]
    assert found[0].response == label
    assert found[0].instruction.endswith(f"{{negative/neutral/positive}}.\n\n{content}")


def test_real_medicine():
    assert len(read(data_file("medicine/medical_meadow_small.json"))) == 5942


@pytest.mark.parametrize(("name", "rows"), [("train", 7473), ("test", 1319)])
def test_real_math(name, rows):
    found = read(data_file(f"math/gsm8k_{name}.jsonl"))
    assert len(found) == rows
    assert all(record.response.endswith(f"#### {record.answer}") for record in found)
    assert found[-1].origin == f"gsm8k_{name}.jsonl:{rows}"


@pytest.mark.parametrize("name", ["alpaca_raw", "alpaca_distilled_llama2_7b_chat"])
def test_real_pairs(name):
    assert len(read(data_file(f"paired/{name}.json"))) == 2000


@pytest.mark.parametrize("by", ["iid", "dirichlet"])
def test_real_clients(by):
    """Two domains in one pool, without categories, beside a client of its own."""
    texts = [data_file("medicine/medical_meadow_small.json"), data_file("math/gsm8k_train.jsonl")]
    sources = [Source(path=str(path), limit=500) for path in texts]
    own = Source(path=str(data_file("general/lima_train.json")), client="lima", limit=100)
    data = Data(sources=(*sources, own), split=Split(by=by, clients=4, alpha=0.5))
    table = describe_clients(build_clients(data, seed=3))
    assert [row["name"] for row in table] == ["lima", *(f"client-0{k}" for k in range(4))]
    sizes = [row["records"] + row["held_out"] for row in table]
    assert sizes[0] == 100
    assert sum(sizes[1:]) == 1000
    assert (max(sizes[1:]) - min(sizes[1:]) <= 1) == (by == "iid")
