"""The long-lived trainer beside a SuperNode: one client, its base model, data and private state.

It listens on a Unix socket that its owner alone can open, and carries out one request at a time.
A relay that goes away loses nothing: the answer is on disk, and is given when asked for again.
"""

import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedsdr.deploy import relay
from fedsdr.errors import UserError

SOCKET: Final = "trainer.sock"
LONGEST: Final = 100  # bytes of a socket's path, which the system limits to about 107
WAITING: Final = 16  # connections in line
PATIENCE: Final = 120.0  # seconds for a relay to take its answer, or to give its question

log = logging.getLogger(__name__)


def listen(path: Path) -> socket.socket:
    """Bind the socket, mode 0600. Raises `UserError` where something else is there: another
    trainer that runs, a file."""
    if len(os.fsencode(path)) > LONGEST:
        raise UserError(
            f"the path {path} is too long for a socket ({LONGEST} bytes at most): use a folder "
            "nearer to the root"
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        _check_abandoned(path)
        path.unlink()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        server.bind(str(path))
    except OSError as error:
        server.close()
        raise UserError(f"cannot listen on {path}: {error}") from error
    finally:
        os.umask(mask)
    server.listen(WAITING)
    return server


def _check_abandoned(path: Path) -> None:
    if not path.is_socket():
        raise UserError(f"{path} is not a socket, and is not written over: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # left behind by one that was killed
            return
        except OSError as error:
            raise UserError(f"cannot take over {path}: {error}") from error
    raise UserError(f"a trainer is running at {path} already: stop that one first")


def serve_requests(server: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    """Answer requests until the process ends, one after another."""
    while True:
        line, _ = server.accept()
        with line:
            try:
                if not is_owner(line):
                    log.error("another user tried to connect")
                    continue
                _serve_one(line, answer)
            except OSError as error:
                log.warning("a relay went away: %s", error)


def is_owner(line: socket.socket) -> bool:
    """Whether the other side runs as this user (where the system tells; modes guard the rest)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


def _serve_one(line: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    line.settimeout(PATIENCE)  # for a relay that stops in the middle
    data = relay.read_frame(line)
    try:
        status, reply = relay.ANSWER, answer(data)
    except UserError as error:  # no request of our server: told to the relay, logged already
        status, reply = relay.ERROR, str(error).encode()
    line.sendall(status)
    relay.write_frame(line, reply)
