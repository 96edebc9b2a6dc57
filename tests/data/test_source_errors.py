"""Files that cannot be read: every error with its place, and its remedy."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from support.data_files import ALPACA, error_message, read_records

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
    said = error_message(write(name, content), **options)
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
    assert part in error_message(write(name, content), **options)
    name, content, options = mended
    assert read_records(write(name, content), **options)


def test_an_encoding_that_cannot_act(tmp_path, folder):
    path = folder({"prompt": ["a"], "response": ["b"]})
    said = error_message(path, encoding="latin-1")
    assert "encoding = 'latin-1' is for text" in said
    assert "remove it" in said


def test_missing_file(tmp_path):
    said = error_message(tmp_path / "gone.json")
    assert "does not exist" in said
    assert "or hub:OWNER/NAME for a data set of the hub" in said


def test_a_path_that_is_no_path(tmp_path):
    assert "cannot read" in error_message(tmp_path / ("x" * 5000))


def test_a_folder_is_not_json(tmp_path):
    (tmp_path / "d.json").mkdir()
    assert "is a folder" in error_message(tmp_path / "d.json", format="json")


def test_an_unreadable_file(write, monkeypatch):
    def refuse(_: Path) -> bytes:
        raise PermissionError("Permission denied")

    path = write("a.json", ALPACA)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in error_message(path)
