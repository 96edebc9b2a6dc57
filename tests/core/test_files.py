"""Files are whole or absent, private ones are their owner's, and bad ones are the user's error."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedsdr.core import files
from fedsdr.core.errors import UserError, WriteError


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_write_creates_parents_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    for text in ("old, and longer than the new one", "new: é"):
        files.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in path.parent.iterdir()] == ["x.txt"]


STEPS = ("open", "write", "fsync", "replace")


def failing(patch: pytest.MonkeyPatch, step: str, number: int) -> None:
    """One of the calls that make up a write fails, as on a full or a broken disk."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, "")

    patch.setattr(os, step, fail)


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_keeps_the_old_file_and_leaves_no_other(tmp_path, step, private, old):
    path = tmp_path / "x.txt"
    if old:
        path.write_text(old)
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, step, errno.ENOSPC)
        with pytest.raises(WriteError, match=r"x\.txt: no space left on device: make room"):
            files.write_text(path, "new", private)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "no space left on device: make room"),
        (errno.EDQUOT, "disk quota exceeded: make room"),
        (errno.EFBIG, r"file too large: raise the limit of a file.s size \(ulimit -f\)"),
        (errno.EROFS, "read-only file system: check the disk, and who may write there"),
        (errno.EACCES, "permission denied: check the disk, and who may write there"),
        (errno.EIO, "input/output error: check the disk"),
    ],
)
def test_what_cannot_be_written_is_told_with_its_cause_and_a_remedy(
    tmp_path, monkeypatch, number, told
):
    writers: list[Callable[[Path], object]] = [
        lambda path: files.write_json(path, 1),
        lambda path: files.append_json_line(path, 1),
        lambda path: files.write_tensors(path, {"x": torch.ones(1)}),
        lambda path: files.write_folder(path, lambda temporary: temporary.mkdir()),
    ]
    failing(monkeypatch, "fsync", number)
    for count, write in enumerate(writers):
        with pytest.raises(WriteError, match=f"cannot write {tmp_path}/{count}: {told}"):
            write(tmp_path / str(count))


def test_a_library_that_finds_the_disk_full_is_understood(tmp_path, file_limit):
    """safetensors raises an error of its own, with the system's number in its text."""

    def write(temporary: Path) -> None:
        temporary.mkdir()
        with file_limit(100):
            save_file({"x": torch.ones(999)}, temporary / "x.safetensors")

    with pytest.raises(WriteError, match="x: file too large: raise the limit"):
        files.write_folder(tmp_path / "x", write)
    assert list(tmp_path.iterdir()) == []


def test_a_private_file_is_its_owners_alone_from_the_first_byte(tmp_path, monkeypatch):
    seen = []

    def write(descriptor: int, data: memoryview) -> int:
        seen.append(os.fstat(descriptor).st_mode & 0o777)
        return real(descriptor, data[:2])  # as a call may: the rest is for the next one

    real = os.write
    monkeypatch.setattr(os, "write", write)
    files.write_text(tmp_path / "x", "secret", private=True)
    assert [*seen, mode(tmp_path / "x")] == [0o600] * 4
    assert (tmp_path / "x").read_text() == "secret"


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


DEAD = 2**31 - 1  # more than any process's number


def test_what_a_process_at_work_is_writing_is_no_leftover(tmp_path):
    """An export into the run's folder, say, while the run is resumed."""
    theirs = tmp_path / f".export.{os.getppid()}.tmp"
    theirs.mkdir()
    (theirs / "model.safetensors").touch()
    files.recover_folder(tmp_path)
    assert (theirs / "model.safetensors").exists()


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in ("a.tmp", ".b.tmp", ".c.12.txt", "clients/x/d.1.tmp")]
    left = (
        f".recipe.toml.{DEAD}.tmp",
        f"clients/x/.s.safetensors.{os.getpid()}.tmp",
        f".seed-0.{DEAD}.tmp/a.txt",
    )
    gone = [tmp_path / name for name in left]
    for path in kept + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    files.recover_folder(tmp_path)
    assert not (tmp_path / f".seed-0.{DEAD}.tmp").exists()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*kept}


def test_folders_that_are_not_ours_are_left_alone(tmp_path):
    names = ("a.txt", "ours/a.txt", "theirs/a.txt", "ours/theirs/a.txt")
    places = [tmp_path / name for name in names]
    left = [path.with_name(f".{path.name}.{DEAD}.tmp") for path in places]
    theirs = tmp_path / f".theirs.{DEAD}.tmp"
    for path in (*left, theirs / "a.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    files.recover_folder(tmp_path, lambda path: path.name != "theirs")
    assert [path.exists() for path in left] == [False, False, True, True]
    assert (theirs / "a.txt").exists()


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()

    def write(temporary: Path) -> None:
        temporary.mkdir()
        (temporary / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
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
