"""Crash-safe files: neither a crash nor a loss of power leaves one half written or reorders writes.

Every write goes to a temporary name in the same folder, is synced, and is renamed over the target,
which POSIX does atomically; then the folder is synced. So what a function here has written survives
a loss of power once the function has returned, and no later write survives without it. Tensors are
stored as safetensors: no pickle.

A write takes two syncs, an append one: each under a millisecond on an SSD, some ten on a disk that
turns. A round has an append, a checkpoint and a write for each client that keeps a state.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open

from fedsdr.core.errors import UserError, WriteError

if TYPE_CHECKING:  # torch takes seconds, and most files hold no tensors
    from torch import Tensor

PRIVATE = 0o600
MIB: Final = 2**20
LEFTOVER = re.compile(r"\.(.+)\.(\d+)\.tmp")  # the names of `temporary_name`


def temporary_name(path: Path) -> Path:
    """The name of `path` while it is written, unique to this process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Converts errors of the disk (no room, no permission) into `WriteError`."""
    try:
        yield
    except WriteError as error:  # of a part of it, under a temporary name perhaps
        raise WriteError(path, error.problem) from error
    except OSError as error:
        raise WriteError(path, error) from error
    except SafetensorError as error:  # from Rust, with the number of an OSError in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise WriteError(path, OSError(int(number[1]), "")) from error


def write_bytes(path: Path, data: bytes, private: bool = False) -> None:
    """Write a file atomically; its folder is created if necessary.

    private: the file is readable by its owner alone (mode 0600), from the first byte.
    """
    make_folder(path.parent)
    temporary = temporary_name(path)
    with disk_errors(path):
        temporary.unlink(missing_ok=True)
        try:
            _write_new(temporary, data, PRIVATE if private else 0o666)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:  # a single call writes at most 2 GiB
        left = left[os.write(descriptor, left) :]


def _sync_folder(folder: Path) -> None:
    """Make creations, renames and removals in a folder survive a loss of power."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int = os.O_RDONLY) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by the file system
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path, private: bool = False) -> list[Path]:
    """Create a folder and its missing parents; returns what was created.

    private: the folder is its owner's alone (mode 0700).
    """
    with disk_errors(folder):
        if folder.is_dir():
            return []
        made = make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700 if private else 0o777)
        _sync_folder(folder.parent)
        return [*made, folder]


def write_folder(folder: Path, write: Callable[[Path], None]) -> bool:
    """Create a folder by `write(temporary)` and a rename; an existing folder is kept.

    So two processes that create the same folder at once both find it complete. Returns whether
    the folder is the one written here.
    """
    make_folder(folder.parent)
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    with disk_errors(folder):
        try:
            write(temporary)
            if not folder.exists():
                for path in (temporary, *temporary.rglob("*")):
                    _sync(path)
                temporary.rename(folder)
                _sync_folder(folder.parent)
                return True
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return False


def check_space(folder: Path, needed: int, instead: str) -> None:
    """Raise `UserError` where fewer bytes are free in `folder`, or where it is to be made.

    instead: what the user may do but make room.
    """
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed / MIB:,.1f} MiB at least, and {free / MIB:,.1f} MiB are free "
            f"there: make room, or {instead}"
        )


def remove_path(path: Path) -> None:
    """Remove a file, or a folder with its contents, atomically."""
    temporary = temporary_name(path)
    with disk_errors(path):
        os.replace(path, temporary)
        _sync_folder(path.parent)
        _delete(temporary)


def recover_folder(folder: Path, is_ours: Callable[[Path], bool] = lambda path: True) -> None:
    """Clean up after a killed process: delete its temporary files below `folder`, and sync the
    folders, since later writes must not survive the renames that they build on.

    is_ours: whether a file or folder, by its final path, belongs to the kind of process that was
    killed. Everything else is left alone with its contents: other processes, perhaps on another
    machine, may be writing it.
    """
    with disk_errors(folder):
        for path in [*folder.iterdir()]:
            if found := LEFTOVER.fullmatch(path.name):
                if is_ours(folder / found[1]) and not _is_at_work(int(found[2])):
                    _delete(path)
            elif path.is_dir() and not path.is_symlink() and is_ours(path):
                recover_folder(path, is_ours)
        _sync_folder(folder)


def _is_at_work(process: int) -> bool:
    """Whether another process with this id is alive: an export or an evaluation may be writing
    below a run's folder."""
    if process == os.getpid():  # the id was reused, as in containers
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str, private: bool = False) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode(), private)


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Write strict JSON (a NaN is an error, not an unreadable file)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, private)


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises `UserError` where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # ValueError: wrong UTF-8, wrong JSON, and numbers of thousands of digits
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def write_json_lines(path: Path, rows: Iterable[Any], private: bool = False) -> None:
    """Write strict JSONL, a value a line."""
    write_bytes(path, _lines(rows), private)


def _lines(rows: Iterable[Any]) -> bytes:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return "".join(lines).encode()


def read_json_lines(path: Path) -> list[Any]:
    """The complete lines of a JSONL file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    try:
        # Not decoded whole: the cut may be inside a character.
        lines = path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1] if line]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise UserError(f"cannot read {path}: a line of it is no JSON: {error}") from error


def append_json_line(path: Path, row: Any) -> None:
    """Append a line; a preceding line that a crash cut short is dropped."""
    append_json_lines(path, [row])


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Append lines with a single sync."""
    data = _lines(rows)
    with disk_errors(path):
        fresh = not path.exists()
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o666)
        try:
            _drop_torn_line(descriptor)
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fresh:
            _sync_folder(path.parent)


def _drop_torn_line(descriptor: int) -> None:
    end = os.fstat(descriptor).st_size
    if end and os.pread(descriptor, 1, end - 1) != b"\n":
        os.ftruncate(descriptor, os.pread(descriptor, end, 0).rfind(b"\n") + 1)


def write_tensors(
    path: Path,
    tensors: Mapping[str, "Tensor"],
    metadata: Mapping[str, str] | None = None,
    private: bool = False,
) -> None:
    """Write a safetensors file; `metadata` values are strings, as the format demands."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, dict(metadata or {})), private)


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata."""
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return tensors, dict(handle.metadata() or {})
    except Exception as error:  # safetensors raises its own type from Rust, and OSError
        raise UserError(f"cannot read tensors from {path}: {error}") from error
