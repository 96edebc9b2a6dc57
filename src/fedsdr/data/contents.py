"""Reading text files by their content: gzip is decompressed, and other formats are recognised."""

import gzip
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fedsdr.core.errors import UserError

GZIP: Final = b"\x1f\x8b"
PARQUET: Final = b"PAR1"
ZIP: Final = b"PK\x03\x04"
# first bytes -> what such a file is, and what to do instead of reading it
UNREAD: Final[Mapping[bytes, tuple[str, str]]] = {
    ZIP: ("a zip archive", "unpack it first, and give the file inside"),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", "save its sheet as CSV, and give that file"),
    b"BZh91AY&SY": ("compressed by bzip2", "unpack it first (bunzip2), or pack it with gzip"),
    b"\xfd7zXZ\x00": ("compressed by xz", "unpack it first (unxz), or pack it with gzip"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it first (unzstd), or pack it with gzip"),
    b"ARROW1\0\0": ("an Arrow file", "give the `datasets` folder that it lies in, or save Parquet"),
    b"PAR1\x15": ("a Parquet file", 'set format = "parquet", or remove format'),
}


def read_bytes(path: Path) -> bytes:
    """The file's bytes, unpacked where it is packed by gzip. Raises `UserError` for other packing
    and for what is no text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable_file(path, error) from error
    if data.startswith(GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{path} is packed by gzip and broken ({error}): fetch or pack it again"
            ) from error
    for start, (what, remedy) in UNREAD.items():
        if data.startswith(start):
            if start == ZIP and path.suffix.lower() in (".xlsx", ".xlsm"):
                what, remedy = UNREAD[b"\xd0\xcf\x11\xe0"]
            raise UserError(f"{path} is {what}, which is no text: {remedy}")
    return data


def is_parquet(path: Path) -> bool:
    """Whether a file begins and ends as Parquet does."""
    try:
        with path.open("rb") as handle:
            if handle.read(len(PARQUET)) != PARQUET:
                return False
            handle.seek(-len(PARQUET), os.SEEK_END)
            return handle.read() == PARQUET
    except OSError as error:
        raise unreadable_file(path, error) from error


def decode_file(path: Path, encoding: str) -> str:
    """The file's text, without a byte order mark. Raises `UserError` where there is none."""
    data = read_bytes(path)
    other = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start : error.start + 1].hex()
        raise UserError(
            f"{path}:{line}: not {encoding}: byte 0x{byte} at offset "
            f"{error.start} ({error.reason}): name the file's encoding, "
            f'e.g. encoding = "{other}"'
        ) from error
    except (LookupError, ValueError) as error:  # no such codec, or one that is not for text
        raise UserError(
            f"{path}: cannot decode with encoding = {encoding!r} ({error}): use a codec of "
            f'Python\'s, e.g. encoding = "utf-8" or "{other}"'
        ) from error
    if not text.strip("\ufeff \t\r\n"):
        raise UserError(f"{path} is empty: give a file with data, or remove the source")
    return text.removeprefix("\ufeff")


def unreadable_file(path: Path, error: Exception) -> UserError:
    """The error for a file that the system cannot open or read."""
    return UserError(f"cannot read {path}: {error}: check the path and its permissions")
