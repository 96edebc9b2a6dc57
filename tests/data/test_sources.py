"""Files to records: every format, limits, and whatever a file holds."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record
from support.data_files import ALPACA, error_message, read_records, user_turn

# Formats


def test_jsonl_origins_are_real_lines(write):
    path = write("a.jsonl", '\n{"prompt": "p", "response": "r"}\r\n\n{"prompt":"q","response":"s"}')
    assert [record.origin for record in read_records(path)] == ["a.jsonl:2", "a.jsonl:4"]
    assert read_records(path)[0] == Record(user_turn("p"), "r")


def test_jsonl_lines_end_at_newlines_only(write):
    path = write("a.jsonl", '{"prompt": "p\u2028q", "response": "r\x85s"}\n')
    assert read_records(path)[0].response == "r\x85s"


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": 1, "data": rows}])
def test_json_list_or_object_with_one_list(write, wrap):
    found = read_records(write("a.json", wrap(ALPACA)))
    assert [record.origin for record in found] == ["a.json, row 1", "a.json, row 2"]


def test_csv_lines_with_breaks_inside_cells(write):
    path = write("a.csv", 'prompt,response\n"a\nb",c\n\nd,"e, ""f"""\n')
    found = read_records(path)
    assert [record.origin for record in found] == ["a.csv:2", "a.csv:5"]
    assert [record.response for record in found] == ["c", 'e, "f"']
    assert found[0].instruction == "a\nb"


def test_csv_with_an_unnamed_index_column(write):
    assert read_records(write("a.csv", ",prompt,response\n0,a,b\n"))[0] == Record(
        user_turn("a"), "b"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '\ufeff{"prompt": "p", "response": "r"}\n'),
        ("a.json", '\ufeff[{"prompt": "p", "response": "r"}]'),
        ("a.csv", "\ufeffprompt,response\np,r\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_are_tolerated(write, name, text, encoding):
    data = text.encode() if encoding.startswith("utf-8") else text[1:].encode(encoding)
    assert read_records(write(name, data), encoding=encoding) == [Record(user_turn("p"), "r")]


def test_named_encoding(write):
    path = write("a.csv", "prompt,response\nÄ,ö\n".encode("latin-1"))
    assert read_records(path, encoding="latin-1") == [Record(user_turn("Ä"), "ö")]


def test_named_format_beats_the_suffix(write):
    path = write("rows.txt", '{"prompt": "p", "response": "r"}\n')
    assert read_records(path, format="jsonl") == [Record(user_turn("p"), "r")]


@pytest.mark.parametrize("splits", [(), ("train", "test")])
def test_datasets_folder(folder, splits):
    path = folder({"instruction": ["a", "b"], "output": ["c", "d"]}, *splits)
    found = read_records(path)
    assert found == [Record(user_turn("a"), "c"), Record(user_turn("b"), "d")]
    assert found[1].origin == "folder, row 2"


def test_datasets_folder_of_conversations(folder):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert read_records(folder({"messages": [talk]})) == [Record(user_turn("a"), "b")]


def test_datasets_class_labels_by_name(folder):
    path = folder({"text": ["a", "b"], "label": [1, 0]}, labels="label")
    found = read_records(path, fields={"instruction": "text", "response": "label"})
    assert [record.response for record in found] == ["good", "bad"]


def test_datasets_unlabelled_rows_have_no_response(folder):
    path = folder({"text": ["a", "b"], "label": [1, -1]}, labels="label")
    said = error_message(path, fields={"instruction": "text", "response": "label"})
    assert said.startswith("folder, row 2: no response (column 'label' is null)")


def test_datasets_without_train_split(folder):
    said = error_message(folder({"prompt": ["a"], "response": ["b"]}, "dev", "test"))
    assert "no split 'train' but 'dev', 'test'" in said


def test_folder_that_is_no_data_set(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "as a `datasets` folder" in error_message(tmp_path / "empty")


# Limit


def test_limit_draws_by_seed_in_file_order(write):
    path = write("a.jsonl", [{"prompt": str(i), "response": "r"} for i in range(100)])
    drawn = [int(record.instruction) for record in read_records(path, limit=20)]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 20
    assert drawn == [int(record.instruction) for record in read_records(path, limit=20)]
    assert drawn != [int(record.instruction) for record in read_records(path, seed=1, limit=20)]
    assert drawn != list(range(20))


def test_a_limit_above_the_size_takes_all(write):
    assert len(read_records(write("a.json", ALPACA), limit=9)) == 2


# Whatever a file holds: records or a UserError

NAMES = ["instruction", "input", "output", "response", "messages", "history", "question", "answer"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value"]) | st.text(max_size=3),
            inner | st.sampled_from(["user", "assistant"]),
            max_size=3,
        )
    ),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5) | VALUES, max_size=4)


def records_or_user_error(suffix: str, data: bytes, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"fuzz{suffix}"
        path.write_bytes(data)
        try:
            found = read_records(path, **options)
        except UserError as error:
            assert "fuzz" in str(error)  # noqa: PT017 (either outcome is right)
            return
    assert found
    for record in found:
        assert record.response.strip()
        assert record.prompt[-1].role == "user"
        assert record.instruction.strip()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([".json", ".jsonl", ".csv"]))
def test_random_bytes(data, suffix):
    records_or_user_error(suffix, data)
    records_or_user_error(suffix, data, encoding="utf-16")


@settings(max_examples=150, deadline=None)
@given(ROWS, st.booleans())
def test_random_json(rows, lines):
    texts = [json.dumps(row) for row in rows]
    text = "\n".join(texts) if lines else f"[{','.join(texts)}]"
    records_or_user_error(".jsonl" if lines else ".json", text.encode())


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='a,"\n\r\0\ufeff ö', max_size=20), st.text(alphabet="a{}!:.[]", max_size=8))
def test_random_csv_and_fields(text, place):
    fields = {"instruction": place, "response": "a"}
    records_or_user_error(".csv", f"a,b\n{text}".encode(), fields=fields)
