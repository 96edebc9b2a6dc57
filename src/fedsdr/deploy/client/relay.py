"""The thin end of the line: hands a message to the long-lived trainer over a Unix socket.

Flower starts a fresh process for every message. This is all that it has to import of ours, none
of it heavy; the base model stays loaded in the trainer (`fedsdr.deploy.client.trainer`).

On the socket, a message is its length in 8 bytes and its bytes; a reply is a byte, 0 for an answer
or 1 for an error in words, and then the same.
"""

import socket
import time
from pathlib import Path
from typing import Final

ANSWER: Final = b"\0"
ERROR: Final = b"\1"
MOST_BYTES: Final = 8 * 2**30  # bytes of a message


class TrainerError(RuntimeError):
    """There is no trainer, or it would not answer."""


def ask_trainer(path: Path, data: bytes, patience: float = 60.0) -> bytes:
    """The trainer's answer. It may take as long as training does.

    patience: seconds to wait for a trainer that is not up, restarting say. Raises `TrainerError`.
    """
    with connect_trainer(path, patience) as line:
        try:
            write_frame(line, data)
            status = read_exactly(line, 1)
            reply = read_frame(line)
        except OSError as error:
            raise TrainerError(f"the trainer at {path} went away: {error}") from error
    if status != ANSWER:
        raise TrainerError(reply.decode(errors="replace"))
    return reply


def connect_trainer(path: Path, patience: float) -> socket.socket:
    """A connection to the trainer's socket, once it is there."""
    end = time.monotonic() + patience
    while True:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.connect(str(path))
            return line
        except OSError as error:
            line.close()
            if time.monotonic() > end:
                raise TrainerError(f"no trainer at {path}: {error}: start it first") from error
            time.sleep(0.2)


def write_frame(line: socket.socket, data: bytes) -> None:
    line.sendall(len(data).to_bytes(8, "big") + data)


def read_frame(line: socket.socket) -> bytes:
    return read_exactly(line, read_length(line))


def read_length(line: socket.socket, most: int = MOST_BYTES, end: float | None = None) -> int:
    """The bytes of the message that follows. Raises OSError where the other side goes away,
    announces more than `most`, or nothing until `end` (of `time.monotonic`)."""
    length = int.from_bytes(read_exactly(line, 8, end), "big")
    if length > most:
        raise OSError(f"a message of {length} bytes is larger than {most}")
    return length


def read_exactly(line: socket.socket, count: int, end: float | None = None) -> bytes:
    """Raises OSError where the other side goes away, or has not sent all bytes at `end`."""
    parts = []
    while count:
        if end is not None:  # a timeout of the socket alone would begin anew with every byte
            if (left := end - time.monotonic()) <= 0:
                raise TimeoutError("a message did not come whole in its time")
            line.settimeout(left)
        part = line.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError("the connection was closed in the middle of a message")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
