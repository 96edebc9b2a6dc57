"""The long-lived trainer beside a SuperNode: one client, its base model, data and private state.

It listens on a Unix socket that its owner alone can use, or one other user, as whom the SuperNode
runs; and carries out one request at a time. A relay that goes away loses nothing: the answer is on
disk, and is given when asked for again.
"""

import logging
import os
import pwd
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


def allowed_users(relay: str = "") -> frozenset[int]:
    """Who may ask: this user, and the one called `relay`. Raises `UserError` for one unknown, and
    where the system does not tell who is at the other end of a socket."""
    if not relay:
        return frozenset({os.getuid()})
    if not hasattr(socket, "SO_PEERCRED"):
        raise UserError("--relay-user needs a system that tells who connects, such as Linux")
    try:
        return frozenset({os.getuid(), pwd.getpwnam(relay).pw_uid})
    except KeyError as error:
        raise UserError(f"--relay-user {relay!r}: there is no such user here") from error


def listen(path: Path, users: frozenset[int] | None = None) -> socket.socket:
    """Bind the socket. Raises `UserError` where something else is there: another trainer that
    runs, a file.

    users: as of `allowed_users`. For its owner alone its mode is 0600; others could not open that,
    and who they are is asked at each connection (`is_allowed`).
    """
    if len(os.fsencode(path)) > LONGEST:
        raise UserError(
            f"the path {path} is too long for a socket ({LONGEST} bytes at most): use a folder "
            "nearer to the root"
        )
    shared = len(users or ()) > 1
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755 if shared else 0o700)
    if path.exists():
        _check_abandoned(path)
        path.unlink()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o111 if shared else 0o177)
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


def serve_requests(
    server: socket.socket,
    answer: Callable[[bytes], bytes],
    users: frozenset[int] | None = None,
) -> None:
    """Answer requests until the process ends, one after another, of `users` alone."""
    users = users or allowed_users()
    while True:
        line, _ = server.accept()
        with line:
            try:
                if not is_allowed(line, users):
                    log.error("another user tried to connect")
                    continue
                _serve_one(line, answer)
            except OSError as error:
                log.warning("a relay went away: %s", error)


def is_allowed(line: socket.socket, users: frozenset[int]) -> bool:
    """Whether the other side runs as one of these (where the system tells; modes guard the
    rest)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] in users)


def _serve_one(line: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    line.settimeout(PATIENCE)  # for a relay that stops in the middle
    data = relay.read_frame(line)
    try:
        status, reply = relay.ANSWER, answer(data)
    except UserError as error:  # no request of our server: told to the relay, logged already
        status, reply = relay.ERROR, str(error).encode()
    line.sendall(status)
    relay.write_frame(line, reply)
