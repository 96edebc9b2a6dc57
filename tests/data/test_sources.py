"""Files to records: every format and layout, and every error with its place."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.core.errors import UserError
from fedsdr.data.csv_rows import csv_rows
from fedsdr.data.records import Record, Turn
from fedsdr.data.sources import read_source
from fedsdr.recipe.sections.data import Source

ALPACA = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello"},
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes a file: bytes and texts as they are, lists as JSON (a row a line for .jsonl)."""

    def write_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_bytes(content.encode())
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write_file


def read(path: Path, seed: int = 0, **options: Any) -> list[Record]:
    return read_source(Source(path=str(path), **options), seed)


def message(path: Path, **options: Any) -> str:
    """The text of the error, which must begin with a place in the file or say the path."""
    with pytest.raises(UserError) as caught:
        read(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value).replace(str(path.parent) + "/", "")


def user(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


# Formats


def test_jsonl_origins_are_real_lines(write):
    path = write("a.jsonl", '\n{"prompt": "p", "response": "r"}\r\n\n{"prompt":"q","response":"s"}')
    assert [record.origin for record in read(path)] == ["a.jsonl:2", "a.jsonl:4"]
    assert read(path)[0] == Record(user("p"), "r")


def test_jsonl_lines_end_at_newlines_only(write):
    path = write("a.jsonl", '{"prompt": "p\u2028q", "response": "r\x85s"}\n')
    assert read(path)[0].response == "r\x85s"


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": 1, "data": rows}])
def test_json_list_or_object_with_one_list(write, wrap):
    found = read(write("a.json", wrap(ALPACA)))
    assert [record.origin for record in found] == ["a.json, row 1", "a.json, row 2"]


def test_csv_lines_with_breaks_inside_cells(write):
    path = write("a.csv", 'prompt,response\n"a\nb",c\n\nd,"e, ""f"""\n')
    found = read(path)
    assert [record.origin for record in found] == ["a.csv:2", "a.csv:5"]
    assert [record.response for record in found] == ["c", 'e, "f"']
    assert found[0].instruction == "a\nb"


def test_csv_with_an_unnamed_index_column(write):
    assert read(write("a.csv", ",prompt,response\n0,a,b\n"))[0] == Record(user("a"), "b")


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
    assert read(write(name, data), encoding=encoding) == [Record(user("p"), "r")]


def test_named_encoding(write):
    path = write("a.csv", "prompt,response\nÄ,ö\n".encode("latin-1"))
    assert read(path, encoding="latin-1") == [Record(user("Ä"), "ö")]


def test_named_format_beats_the_suffix(write):
    path = write("rows.txt", '{"prompt": "p", "response": "r"}\n')
    assert read(path, format="jsonl") == [Record(user("p"), "r")]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Saves a `datasets` folder, with splits where names are given."""
    datasets = pytest.importorskip("datasets")

    def save(columns: dict[str, list[Any]], *splits: str, labels: str = "") -> Path:
        datasets.disable_progress_bars()
        data = datasets.Dataset.from_dict(columns)
        if labels:
            data = data.cast_column(labels, datasets.ClassLabel(names=["bad", "good"]))
        kept = datasets.DatasetDict(dict.fromkeys(splits, data)) if splits else data
        kept.save_to_disk(str(tmp_path / "folder"))
        return tmp_path / "folder"

    return save


@pytest.mark.parametrize("splits", [(), ("train", "test")])
def test_datasets_folder(folder, splits):
    path = folder({"instruction": ["a", "b"], "output": ["c", "d"]}, *splits)
    found = read(path)
    assert found == [Record(user("a"), "c"), Record(user("b"), "d")]
    assert found[1].origin == "folder, row 2"


def test_datasets_folder_of_conversations(folder):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert read(folder({"messages": [talk]})) == [Record(user("a"), "b")]


def test_datasets_class_labels_by_name(folder):
    path = folder({"text": ["a", "b"], "label": [1, 0]}, labels="label")
    found = read(path, fields={"instruction": "text", "response": "label"})
    assert [record.response for record in found] == ["good", "bad"]


def test_datasets_unlabelled_rows_have_no_response(folder):
    path = folder({"text": ["a", "b"], "label": [1, -1]}, labels="label")
    said = message(path, fields={"instruction": "text", "response": "label"})
    assert said.startswith("folder, row 2: no response (column 'label' is null)")


def test_datasets_without_train_split(folder):
    said = message(folder({"prompt": ["a"], "response": ["b"]}, "dev", "test"))
    assert "no split 'train' but 'dev', 'test'" in said


def test_folder_that_is_no_data_set(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "as a `datasets` folder" in message(tmp_path / "empty")


# Limit


def test_limit_draws_by_seed_in_file_order(write):
    path = write("a.jsonl", [{"prompt": str(i), "response": "r"} for i in range(100)])
    drawn = [int(record.instruction) for record in read(path, limit=20)]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 20
    assert drawn == [int(record.instruction) for record in read(path, limit=20)]
    assert drawn != [int(record.instruction) for record in read(path, seed=1, limit=20)]
    assert drawn != list(range(20))


def test_a_limit_above_the_size_takes_all(write):
    assert len(read(write("a.json", ALPACA), limit=9)) == 2


# What spreadsheets write, and packed files


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
    assert read(write(name, text), **options) == [Record(user("1,5"), "b")]


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
        read(write("a.csv", "prompt,response,,\na,b,,\na,b,,c\n"))


def test_lines_are_counted_from_the_line_that_declares_a_delimiter(write):
    path = write("a.csv", "sep=;\nprompt;response\na;b\n")
    assert read(path)[0].origin == "a.csv:3"


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n"])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(ValueError, match="expected one character between cells"):
        Source(path="a.csv", delimiter=delimiter)


def test_csv_cells_of_any_size(write):
    limit = csv.field_size_limit()
    text = "x" * (limit + 1)
    assert read(write("a.csv", f"prompt,response\na,{text}\n")) == [Record(user("a"), text)]
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
    assert read(write(name, gzip.compress(text.encode()))) == [Record(user("ä"), "b")]


@pytest.mark.parametrize(
    ("name", "options"), [("a.parquet", {}), ("a", {}), ("a.csv", {}), ("a", {"format": "parquet"})]
)
def test_parquet(tmp_path, name, options):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        arrow.table({"prompt": ["a", "b"], "response": ["c", "d"]}), tmp_path / name
    )
    found = read(tmp_path / name, **options)
    assert found == [Record(user("a"), "c"), Record(user("b"), "d")]
    assert found[1].origin == f"{name}, row 2"


def test_parquet_read_as_text_is_named(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"prompt": ["a"]}), tmp_path / "a.jsonl")
    assert "is a Parquet file" in message(tmp_path / "a.jsonl", format="jsonl")


# Errors of files

GZIPPED = gzip.compress(b"prompt,response\na,b\n", mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "options", "parts"),
    [
        ("a.txt", "x", {}, ["'.txt'", ".jsonl, .ndjson, .json, .csv, .tsv", "add format"]),
        ("a.json", "", {}, ["is empty"]),
        ("a.csv", "\ufeff\n \n", {}, ["is empty"]),
        ("a.json", "[]", {}, ["holds no rows"]),
        ("a.csv", "prompt,response\n", {}, ["holds no rows"]),
        ("a.json", "[1,\n2", {}, ["a.json:2: not valid JSON", "column 2"]),
        ("a.json", "[" * 100_000, {}, ["not valid JSON"]),
        ("a.json", f"[{'9' * 5000}]", {}, ["not valid JSON"]),
        ("a.jsonl", f"{{}}\n{'9' * 5000}", {}, ["a.jsonl:2: not valid JSON"]),
        ("a.json", '{"a": 1}\n{"a": 2}\n', {}, ["a.json:2", 'set format = "jsonl"']),
        ("a.json", '"x"', {}, ["holds a text", "list of objects"]),
        ("a.json", '{"a": [], "b": []}', {}, ["an object with 2 lists"]),
        ("a.json", '[{"a": 1}, 2, []]', {}, ["row 2: not an object (it is a number)", "1 more"]),
        ("a.jsonl", '{"a": 1}\n[2]\n', {}, ["a.jsonl:2: not an object (it is a list)"]),
        ("a.jsonl", '{}\n{"a":\n\n{]\n', {}, ["a.jsonl:2: not valid", "1 more row", "(line 4)"]),
        ("a.csv", "a,b\n1,2\n1,2,3\n4\n1,2,3,4\n", {}, ["a.csv:3: too many", "3 for", "(line 5)"]),
        ("a.csv", "a,b\n1,2\n\n1\n", {}, ["a.csv:4: too few cells (1 for the header's 2"]),
        ("a.csv", "a,a\n1,2\n", {}, ["'a' stands twice"]),
        ("a.csv", 'a,b\n1,2\n"3,4\n5,6\n', {}, ["a.csv:3: not valid CSV", "every quote is closed"]),
        ("a.csv", b"a,b\n1,2\n\xe4,2\n", {}, ["a.csv:3: not utf-8", "offset 8", '= "latin-1"']),
        ("a.csv", b"\xff\xfea\0", {}, ["a.csv:1: not utf-8", 'encoding = "utf-16"']),
        ("a.csv", "a", {"encoding": "utf8000"}, ["encoding = 'utf8000'", "utf-8"]),
        ("a.csv", "a", {"encoding": "hex"}, ["encoding = 'hex'"]),
        ("a.csv", "a", {"encoding": "a\0b"}, ["cannot decode"]),
        ("a.csv", "a", {"format": "datasets"}, ['not of format = "datasets"', "csv or parquet"]),
        ("a.csv", "a;b\n1;2\n", {}, ["columns 'a', 'b'", "alpaca: instruction, out", "fields ="]),
        ("a.csv", "a;b|c\n1;2|3\n", {}, ["';' and '|'", "several", 'delimiter = ";"']),
        ("a.csv", "a,b;c\n1,2;3\n", {}, ["',' and ';'", "several", 'delimiter = ","']),
        ("a.csv", "a;b;c, d\n1,5;2;3\n", {}, ["',' and ';'", "several", "delimiter ="]),
        (
            "a.csv",
            "a,b;c,d\n1,2\n",
            {},
            ["fit none of them", "by ',', line 2 has 2 cells", "by ';', line 2 has 1 cells"],
        ),
        ("a.json", "[]", {"delimiter": ";"}, ["delimiter = ';' is for CSV", "remove it"]),
        ("a.jsonl", '{}\n{"a": Infinity}\n{"a": 1e999}', {}, ["a.jsonl:2: not", "Infinity is no"]),
        ("a.jsonl", '{"a": [[{"b": -Infinity}]]}', {}, ["a.jsonl:1: not valid", "-Infinity is no"]),
        ("a.jsonl", '{"a": NaN}', {}, ["a.jsonl:1: not valid JSON (NaN is no JSON number)"]),
        ("a.json", '[{"a": 1}, {"a": -1e999}]', {}, ["row 2: not valid JSON (-1e999 is beyond"]),
        ("a.json", '[{"a": 1, "b": 2, "a": 3}]', {}, ["row 1: not valid JSON", "key 'a'"]),
        ("a.jsonl", '{"m": [{"a": 1, "a": 1}]}', {}, ["a.jsonl:1: not valid JSON", "'a' stands"]),
        ("a.json", '{"rows": [], "rows": []}', {}, ["not valid JSON", "'rows' stands twice"]),
        ("a.gz", GZIPPED[:-9], {"format": "csv"}, ["packed by gzip and broken", "again"]),
        ("a.xlsx", b"PK\3\4 and more", {}, ["is an Excel workbook", "save its sheet as CSV"]),
        ("a.csv", b"PK\3\4 and more", {}, ["is a zip archive", "unpack it first"]),
        ("a.xls", b"\xd0\xcf\x11\xe0 and more", {}, ["is an Excel workbook", "as CSV"]),
        ("a.jsonl.xz", b"\xfd7zXZ\0 and", {}, ["compressed by xz", "unpack it first (unxz)"]),
        ("a.parquet", b"PAR1 cut short", {}, ["cannot read", "as Parquet", "again"]),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(write, name, content, options, parts):
    said = message(write(name, content), **options)
    assert all(part in said for part in parts), said


PAIR = {"prompt": "a", "response": "b"}
LINE = json.dumps(PAIR)
TABLE = "prompt,response\na,b\n"


@pytest.mark.parametrize(
    ("spoilt", "part", "mended"),
    [
        (("a.jsonl", LINE + "\n" + LINE[:-2], {}), "mend the line", ("a.jsonl", LINE, {})),
        (("a.json", LINE + "\n" + LINE, {}), 'set format = "jsonl"',
         ("a.json", LINE, {"format": "jsonl"})),
        (("a.txt", LINE, {}), 'add format = "jsonl"', ("a.txt", LINE, {"format": "jsonl"})),
        (("a.jsonl", '{"prompt": NaN}', {}), "remove the row", ("a.jsonl", LINE, {})),
        (("a.jsonl", '{"prompt": "a", "prompt": "b"}', {}), "mend", ("a.jsonl", LINE, {})),
        (("a.jsonl", LINE + '\n{"prompt": "a"}', {}), 'set empty = "skip"',
         ("a.jsonl", LINE + '\n{"prompt": "a"}', {"empty": "skip"})),
        (("a.csv", "q,r\na,b\n", {}), "fields = {instruction",
         ("a.csv", "q,r\na,b\n", {"fields": {"instruction": "q", "response": "r"}})),
        (("a.csv", "prompt;response|x\na;b|c\n", {}), 'delimiter = ";"',
         ("a.csv", "prompt;response|x\na;b|c\n",
          {"delimiter": ";", "fields": {"instruction": "prompt", "response": "response|x"}})),
        (("a.csv", TABLE + "c,d,e\n", {}), "in quotes", ("a.csv", TABLE + 'c,"d,e"\n', {})),
        (("a.csv", TABLE + '"c,d\n', {}), "every quote is closed", ("a.csv", TABLE, {})),
        (("a.csv", TABLE.replace("b", "ö").encode("latin-1"), {}), '= "latin-1"',
         ("a.csv", TABLE.replace("b", "ö").encode("latin-1"), {"encoding": "latin-1"})),
        (("a.csv", TABLE.encode("utf-16"), {}), '= "utf-16"',
         ("a.csv", TABLE.encode("utf-16"), {"encoding": "utf-16"})),
        (("a.xlsx", b"PK\3\4", {}), "save its sheet as CSV",
         ("a.csv", "\ufeff" + TABLE.replace(",", ";").replace("\n", "\r\n"), {})),
        (("a.jsonl.xz", lzma.compress(LINE.encode()), {}), "unpack it first (unxz), or pack it wi",
         ("a.jsonl.gz", gzip.compress(LINE.encode(), mtime=0), {})),
        (("a.jsonl.bz2", bz2.compress(LINE.encode()), {}), "unpack it first (bunzip2)",
         ("a.jsonl", LINE, {})),
        (("a.csv", TABLE, {"format": "datasets"}), "use auto", ("a.csv", TABLE, {})),
        (("a.jsonl", LINE, {"delimiter": ";"}), "remove it", ("a.jsonl", LINE, {})),
    ],
)  # fmt: skip
def test_a_remedy_remedies(write, spoilt, part, mended):
    name, content, options = spoilt
    assert part in message(write(name, content), **options)
    name, content, options = mended
    assert read(write(name, content), **options)


def test_an_encoding_that_cannot_act(tmp_path, folder):
    path = folder({"prompt": ["a"], "response": ["b"]})
    said = message(path, encoding="latin-1")
    assert "encoding = 'latin-1' is for text" in said
    assert "remove it" in said


def test_missing_file(tmp_path):
    said = message(tmp_path / "gone.json")
    assert "does not exist" in said
    assert "or hub:OWNER/NAME for a data set of the hub" in said


def test_a_path_that_is_no_path(tmp_path):
    assert "cannot read" in message(tmp_path / ("x" * 5000))


def test_a_folder_is_not_json(tmp_path):
    (tmp_path / "d.json").mkdir()
    assert "is a folder" in message(tmp_path / "d.json", format="json")


def test_an_unreadable_file(write, monkeypatch):
    def refuse(_: Path) -> bytes:
        raise PermissionError("Permission denied")

    path = write("a.json", ALPACA)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in message(path)


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
            found = read(path, **options)
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
