"""Writing files so that a crash at any instant leaves either the old file or the new one.

Every write goes to a temporary name in the same folder and is renamed over the target
(`os.replace` is atomic on POSIX and Windows). Tensors are stored as safetensors: no pickle.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedsdr.errors import UserError

PRIVATE = 0o600
LEFTOVER = re.compile(r"\..+\.\d+\.tmp")  # the names of `write_atomically`


def write_atomically(path: Path, write: Callable[[Path], None], private: bool = False) -> None:
    """Call `write(temporary)` and rename the result to `path`; parents are created.

    private: the file is readable by its owner alone (mode 0600), from the first byte.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch(mode=PRIVATE if private else 0o666)
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # a library may have put a file of its own in its place
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(folder: Path, write: Callable[[Path], None]) -> bool:
    """Make a new folder by `write(temporary)` and a rename; one that is there already is kept.

    So of two processes that make the same folder at once, both find it whole. Returns whether
    the folder is the one written here.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write(temporary)
        if not folder.exists():
            temporary.rename(folder)
            return True
    except OSError:
        if not folder.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return False


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files below `folder` that a killed process left behind."""
    for path in folder.rglob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink()


def write_text(path: Path, text: str, private: bool = False) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write, private)


def write_bytes(path: Path, data: bytes, private: bool = False) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write, private)


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Write strict JSON (a NaN is an error, not an unreadable file)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, private)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # ValueError: wrong UTF-8, wrong JSON, and numbers of thousands of digits
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def write_json_lines(path: Path, rows: Iterable[Any], private: bool = False) -> None:
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_text(path, "".join(lines), private)


def read_json_lines(path: Path) -> list[Any]:
    """The complete lines of a JSONL file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")  # not decoded whole: the cut may be inside a character
    try:
        return [json.loads(line) for line in lines[:-1] if line]
    except ValueError as error:
        raise UserError(f"cannot read {path}: a line of it is no JSON: {error}") from error


def append_json_line(path: Path, row: Any) -> None:
    """Add a line; one that a crash had cut short before it is dropped."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with open(path, "ab+") as handle:
        _drop_torn_line(handle)
        handle.write(line.encode())


def _drop_torn_line(handle: BinaryIO) -> None:
    end = handle.seek(0, os.SEEK_END)
    if not end:
        return
    handle.seek(end - 1)
    if handle.read(1) != b"\n":
        handle.seek(0)
        handle.truncate(handle.read().rfind(b"\n") + 1)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    private: bool = False,
) -> None:
    """Write a safetensors file; `metadata` values are strings, as the format demands."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(contiguous, temporary, dict(metadata or {}))

    write_atomically(path, write, private)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata."""
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return tensors, dict(handle.metadata() or {})
    except Exception as error:  # safetensors raises its own type from Rust, and OSError
        raise UserError(f"cannot read tensors from {path}: {error}") from error
