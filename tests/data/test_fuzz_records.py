"""Whatever a data file holds: records that can be learnt from, or a `UserError` naming the file."""

import csv
import encodings.aliases
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.data.records import Turn
from fedsdr.data.sources import read_source
from fedsdr.recipe.sections.data import Source
from support.fuzzing import JUNK, fuzzed, mutated, value_or_user_error

# `unicode_escape` and its like warn of escapes that they do not know.
pytestmark = pytest.mark.filterwarnings("ignore:invalid:DeprecationWarning")

TURNS = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two."}]
SHARED = [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "two."}]
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, "2"]}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL = {"role": "tool", "content": [{"type": "text", "text": "9"}], "name": "f", "weight": 0}
ROWS: list[dict[str, Any]] = [
    {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["a", "b"]]},
    {"instruction": "Say it.", "context": "red", "response": "red", "category": "x"},
    {"prompt": "Is it?", "completion": "It is.", "system": "Be brief."},
    {"question": "How many?", "answer": "Two, so #### 2"},
    {"messages": TURNS, "category": "chat"},
    {"conversations": SHARED},
    {"messages": [TURNS[0], CALLING, TOOL, *TURNS[1:]], "tools": [FUNCTION]},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
]
KEYS = ["role", "content", "from", "value", "tool_calls", "function_call", "weight", "name"]
COLUMNS = sorted({column for row in ROWS for column in row})


@st.composite
def changed(draw: st.DrawFn, row: dict[str, Any]) -> Any:
    """A row with junk in up to two places: a cell, a turn, a turn's part, a key, the row itself."""
    row = json.loads(json.dumps(row))
    for _ in range(draw(st.integers(0, 2))):
        column = draw(st.sampled_from([*row, *COLUMNS]))
        kind = draw(st.sampled_from("cell drop inside append row".split()))
        cell = row.get(column)
        if kind == "row":
            return draw(JUNK)
        if kind == "drop":
            row.pop(column, None)
        elif kind == "append" and isinstance(cell, list):
            cell.append(draw(JUNK))
        elif kind == "inside" and isinstance(cell, list) and cell:
            turn = draw(st.sampled_from(cell))
            if isinstance(turn, dict):
                turn[draw(st.sampled_from(KEYS))] = draw(JUNK)
        else:
            row[column] = draw(JUNK)
    return row


FILES = st.sampled_from(ROWS).flatmap(lambda row: st.lists(changed(row), max_size=4))
CODECS = sorted({*encodings.aliases.aliases.values(), "idna", "undefined", "", "\0", "no such"})


def read(
    folder: Path,
    suffix: str,
    data: bytes,
    learn: Any = "last",
    invalid: Any = "error",
    **options: Any,
) -> None:
    path = folder / f"fuzz{suffix}"
    path.write_bytes(data)
    source = Source(path=str(path), **options)
    found = value_or_user_error(folder, lambda: read_source(source, 0, learn, invalid))
    if found is None:
        return
    assert len({record.origin for record in found.records}) == len(found.records)
    for record in found.records:
        assert record.response.strip() or record.calls
        assert record.instruction.strip()
        assert record.prompt[-1].role in ("user", "tool")
        for turn in (*record.prompt, Turn("assistant", record.response, record.calls)):
            json.dumps(turn.message, ensure_ascii=False).encode()
        json.loads(record.tools or "[]")


@fuzzed
@given(
    rows=FILES,
    lines=st.booleans(),
    empty=st.sampled_from(["error", "skip"]),
    learn=st.sampled_from(["last", "all"]),
    invalid=st.sampled_from(["error", "skip"]),
)
def test_rows_with_junk_in_them(tmp_path, rows, lines, empty, learn, invalid):
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    suffix = ".jsonl" if lines else ".json"
    read(tmp_path, suffix, text.encode(), learn, invalid, empty=empty)


def comma_separated(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


WHOLE = [
    *((".csv", comma_separated([row] * 3)) for row in ROWS),
    *((".jsonl", "\n".join([json.dumps(row)] * 3).encode()) for row in ROWS),
    *((".json", json.dumps([row, row]).encode()) for row in ROWS),
]


@fuzzed
@given(data=st.data())
def test_files_that_were_changed(tmp_path, data):
    suffix, content = data.draw(st.sampled_from(WHOLE))
    read(tmp_path, suffix, data.draw(mutated(st.just(content))))


@fuzzed
@given(
    file=st.sampled_from(WHOLE),
    encoding=st.sampled_from(CODECS),
    extra=st.binary(max_size=20),
    fields=st.dictionaries(
        st.sampled_from(["instruction", "input", "response", "system", "category", "answer"]),
        st.sampled_from(
            [*COLUMNS, "{prompt}!", "{", "{}", "{question[0]}", "{answer!r}", "", "\0"]
        ),
        max_size=2,
    ),
)
def test_any_encoding_and_any_fields(tmp_path, file, encoding, extra, fields):
    suffix, content = file
    read(tmp_path, suffix, content + extra, encoding=encoding, fields=fields)
