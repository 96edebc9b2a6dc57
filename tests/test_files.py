"""Files are whole or absent, private ones are their owner's, and bad ones are the user's error."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr import files
from fedsdr.errors import UserError


class CrashError(Exception):
    """What happens in the middle of a write."""


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_write_creates_parents_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    for text in ("old, and longer than the new one", "new: é"):
        files.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in path.parent.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("private", [False, True])
def test_a_failure_in_the_middle_keeps_the_old_file_and_leaves_no_other(tmp_path, private):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise CrashError

    with pytest.raises(CrashError):
        files.write_atomically(path, write, private)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path):
    def write(temporary: Path) -> None:
        raise CrashError

    with pytest.raises(CrashError):
        files.write_atomically(tmp_path / "x", write)
    assert list(tmp_path.iterdir()) == []


def test_a_private_file_is_its_owners_alone_from_the_first_byte(tmp_path):
    seen = []

    def write(temporary: Path) -> None:
        seen.append(mode(temporary))
        temporary.write_text("secret")

    files.write_atomically(tmp_path / "x", write, private=True)
    assert [*seen, mode(tmp_path / "x")] == [0o600, 0o600]


PRIVATE_WRITERS = {
    "text": lambda path: files.write_text(path, "secret", private=True),
    "lines": lambda path: files.write_json_lines(path, ["secret"], private=True),
    "tensors": lambda path: files.write_tensors(path, {"x": torch.ones(2)}, private=True),
}


@pytest.mark.parametrize("kind", PRIVATE_WRITERS)
def test_private_files_have_mode_0600_even_over_an_open_one(tmp_path, kind):
    path = tmp_path / "x"
    path.write_text("")
    path.chmod(0o644)
    PRIVATE_WRITERS[kind](path)
    assert mode(path) == 0o600


def test_other_files_follow_the_umask(tmp_path):
    (tmp_path / "reference").touch()
    files.write_text(tmp_path / "x", "")
    assert mode(tmp_path / "x") == mode(tmp_path / "reference")


def test_a_folder_that_is_there_already_is_kept_whole(tmp_path):
    folder = tmp_path / "parent" / "model"

    def write_one(name: str) -> None:
        def write(temporary: Path) -> None:
            temporary.mkdir()
            (temporary / name).write_text(name)

        files.write_folder(folder, write)

    for name in ("first", "second"):
        write_one(name)
        assert [entry.name for entry in folder.iterdir()] == ["first"]
    assert list(folder.parent.iterdir()) == [folder]


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in ("a.tmp", ".b.tmp", ".c.12.txt", "clients/x/d.1.tmp")]
    gone = [tmp_path / name for name in (".recipe.toml.7.tmp", "clients/x/.s.safetensors.123.tmp")]
    for path in kept + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    files.remove_leftovers(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*kept}


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()

    def write(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "half").touch()
        raise CrashError

    with pytest.raises(CrashError):
        files.write_folder(folder, write)
    assert list(tmp_path.rglob("*")) == [folder, folder / "old"]


# --- JSON

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False).filter(
        math.isfinite
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize(("private", "wanted"), [(False, 0o644), (True, 0o600)])
def test_tensors_can_be_read_by_whom_the_umask_lets(tmp_path, private, wanted):
    """safetensors by itself writes for the owner alone."""
    old = os.umask(0o022)
    try:
        files.write_tensors(tmp_path / "x", {"a": torch.ones(2)}, private=private)
    finally:
        os.umask(old)
    assert mode(tmp_path / "x") == wanted


@settings(deadline=None)
@given(st.lists(json_values, max_size=4))
def test_json_comes_back_as_it_was(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("json")
    files.write_json(folder / "one.json", rows)
    assert files.read_json(folder / "one.json") == rows
    files.write_json_lines(folder / "many.jsonl", rows[:2])
    for row in rows[2:]:
        files.append_json_line(folder / "many.jsonl", row)
    assert files.read_json_lines(folder / "many.jsonl") == rows


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_json_number_is_refused_and_nothing_written(tmp_path, bad):
    path = tmp_path / "x.json"
    path.write_text("[1]\n")
    writers: list[Any] = [
        lambda: files.write_json(path, {"loss": bad}),
        lambda: files.write_json_lines(path, [{"loss": bad}]),
        lambda: files.append_json_line(path, [bad]),
    ]
    for write in writers:
        with pytest.raises(ValueError, match="JSON compliant"):
            write()
        assert path.read_text() == "[1]\n"


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"a": 1} more'])
def test_unreadable_json_is_the_users_error(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"cannot read .*x\.json"):
        files.read_json(path)


def test_missing_json(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*x\.json"):
        files.read_json(tmp_path / "x.json")
    assert files.read_json_lines(tmp_path / "x.jsonl") == []


def test_a_last_line_cut_anywhere_is_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [{"client": "Zürich"}, {"client": "東京\u2028"}]
    files.write_json_lines(path, rows)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole)):  # inside of characters of several bytes, too
        path.write_bytes(whole[:end])
        assert files.read_json_lines(path) == (rows[:1] if end >= first else [])
    path.write_bytes(whole)
    assert files.read_json_lines(path) == rows


# --- Tensors


def test_tensors_and_metadata_come_back_as_they_were(tmp_path):
    path = tmp_path / "deep" / "x.safetensors"
    tensors = {
        "a": torch.tensor([1.5, float("nan")]),
        "b": torch.arange(6, dtype=torch.int64).reshape(2, 3).T,  # not contiguous
        "c": torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True),
        "d": torch.zeros(0, 3, dtype=torch.float64),
    }
    files.write_tensors(path, tensors, {"round": "3"})
    got, metadata = files.read_tensors(path)
    assert metadata == {"round": "3"}
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(got[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
        assert got[name].dtype == tensor.dtype


def test_tensors_without_metadata(tmp_path):
    files.write_tensors(tmp_path / "x", {"a": torch.ones(1)})
    assert files.read_tensors(tmp_path / "x")[1] == {}


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "folder"])
def test_corrupt_tensors_are_the_users_error(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    files.write_tensors(path, {"a": torch.ones(100)})
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "cut": whole[:-8], "text": b"x" * 200}[damage])
    with pytest.raises(UserError, match=r"cannot read tensors from .*x\.safetensors"):
        files.read_tensors(path)


def test_a_json_file_ends_with_a_line_end_and_keeps_letters(tmp_path):
    files.write_json(tmp_path / "x.json", {"name": "Zürich"})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "Zürich" in text
    assert json.loads(text) == {"name": "Zürich"}
