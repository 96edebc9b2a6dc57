"""What spreadsheets write: delimiters, cells, packed files, Parquet."""

import csv
import gzip
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.core.errors import UserError
from fedsdr.data.csv_rows import csv_rows
from fedsdr.data.records import Record
from fedsdr.recipe.sections.data import Source
from support.data_files import error_message, read_records, user_turn


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("a.csv", "prompt;response\n1,5;b\n", {}),
        ("a.csv", "prompt\tresponse\n1,5\tb\n", {}),
        ("a.tsv", "prompt\tresponse\n1,5\tb\n", {}),
        ("a.tsv", "prompt;response\n1,5;b\n", {}),
        ("a.csv", '"prompt";"response"\r\n"1,5";"b"\r\n', {}),
        ("a.csv", 'prompt,"response"\n"1,5",b\n', {}),
        ("a.csv", 'prompt,response,"x;y"\n"1,5",b,\n', {}),
        ("a.csv", "\ufeffsep=;\r\nprompt;response\r\n1,5;b\r\n", {}),
        ("a.csv", "sep=|\nprompt|response\n1,5|b\n", {"delimiter": "|"}),
        ("a.csv", '"sep=;"\nprompt;response\n1,5;b\n', {}),
        ("a.csv", "prompt;response;;\n1,5;b;;\n", {}),
        ("a.csv", "prompt;response;\n1,5;b\n", {}),
        ("a.csv", "prompt:response\n1,5:b\n", {"delimiter": ":"}),
        ("a.csv", "prompt;response;a|b\n1,5;b;c\n", {"delimiter": ";"}),
        ("a.csv", "prompt;response;a|b\n1,5;b;c\n", {}),
        ("a.csv", "prompt;response;a, b\n1,5;b;c\n", {"delimiter": ";"}),
        ("a.tsv", "prompt;response;a\tb\n1,5;b;c\n", {}),
        ("a.csv", 'prompt,response,a;b\n"1,5",b,c\n', {}),
        ("a.csv", 'prompt,response,a;b,\n"1,5",b,c,\n', {}),
    ],
)
def test_csv_with_any_delimiter(write, name, text, options):
    assert read_records(write(name, text), **options) == [Record(user_turn("1,5"), "b")]


def rows_or_error(path: Path, text: str) -> tuple[list[object], str]:
    try:
        return [cells for _, cells in csv_rows(path, text, None)[1]], ""
    except UserError as error:
        return [], str(error)


CELLS = st.text(alphabet='a1,;\t|" \n', max_size=6)
COLUMNS = st.lists(
    st.text(alphabet="xyz,;|\t ", max_size=3).map(lambda text: f"n{text}n"),
    min_size=2,
    max_size=4,
    unique=True,
)


@given(
    names=COLUMNS,
    delimiter=st.sampled_from(",;\t|"),
    suffix=st.sampled_from([".csv", ".tsv"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    data=st.data(),
)
def test_a_table_is_read_as_it_was_written_or_the_delimiter_is_asked_for(
    names, delimiter, suffix, quoting, data
):
    """Never by another one, whatever stands in names and cells; and always where it is given."""
    row = st.lists(CELLS, min_size=len(names), max_size=len(names))
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows([names, *rows])
    expected = [dict(zip(names, cells, strict=True)) for cells in rows]
    path = Path(f"table{suffix}")
    assert [cells for _, cells in csv_rows(path, text.getvalue(), delimiter)[1]] == expected
    found, problem = rows_or_error(path, text.getvalue())
    assert found in ([], expected)
    assert found or re.search(rf"the header has .*{re.escape(repr(delimiter))}.* say in", problem)


def test_a_column_without_a_name_is_left_out_where_it_is_empty_alone(write):
    with pytest.raises(UserError, match=r"a.csv:3: too many cells .*4 for the header's 2"):
        read_records(write("a.csv", "prompt,response,,\na,b,,\na,b,,c\n"))


def test_lines_are_counted_from_the_line_that_declares_a_delimiter(write):
    path = write("a.csv", "sep=;\nprompt;response\na;b\n")
    assert read_records(path)[0].origin == "a.csv:3"


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n"])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(ValueError, match="expected one character between cells"):
        Source(path="a.csv", delimiter=delimiter)


def test_csv_cells_of_any_size(write):
    limit = csv.field_size_limit()
    text = "x" * (limit + 1)
    assert read_records(write("a.csv", f"prompt,response\na,{text}\n")) == [
        Record(user_turn("a"), text)
    ]
    assert csv.field_size_limit() == limit  # the process's own is left as it was


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl.gz", '{"prompt": "ä", "response": "b"}\n'),
        ("a.json.gz", '[{"prompt": "ä", "response": "b"}]'),
        ("a.csv.gz", "prompt,response\nä,b\n"),
        ("a.tsv.gz", "prompt\tresponse\nä\tb\n"),
        ("a.jsonl", '{"prompt": "ä", "response": "b"}\n'),  # told by its first bytes
    ],
)
def test_packed_files(write, name, text):
    assert read_records(write(name, gzip.compress(text.encode()))) == [Record(user_turn("ä"), "b")]


@pytest.mark.parametrize(
    ("name", "options"), [("a.parquet", {}), ("a", {}), ("a.csv", {}), ("a", {"format": "parquet"})]
)
def test_parquet(tmp_path, name, options):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        arrow.table({"prompt": ["a", "b"], "response": ["c", "d"]}), tmp_path / name
    )
    found = read_records(tmp_path / name, **options)
    assert found == [Record(user_turn("a"), "c"), Record(user_turn("b"), "d")]
    assert found[1].origin == f"{name}, row 2"


def test_parquet_read_as_text_is_named(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"prompt": ["a"]}), tmp_path / "a.jsonl")
    assert "is a Parquet file" in error_message(tmp_path / "a.jsonl", format="jsonl")
