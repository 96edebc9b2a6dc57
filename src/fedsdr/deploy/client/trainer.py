"""The long-lived trainer next to a SuperNode: one client, its base model, data and private state.

It listens on a Unix socket that its owner alone can use, or one other user, as whom the SuperNode
runs; and carries out one request at a time, in the main thread. Each relay has a thread that reads
and writes, and a time for both, so one that is slow holds up no other. What they send is read
within a budget of memory that they share. A relay that goes away loses nothing: the answer is on
disk, and is given when asked for again.
"""

import fcntl
import logging
import os
import pwd
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, Final, NamedTuple

from fedsdr.core.errors import UserError
from fedsdr.deploy.client import relay

SOCKET: Final = "trainer.sock"
LONGEST_MESSAGE: Final = 100  # bytes of a socket's path, which the system limits to about 107
WAITING: Final = 16  # connections in line
LINES: Final = 16  # relays that are served at once
BUFFERED: Final = 2**30  # bytes of all their questions, or one question that is longer
HURRY: Final = 5.0  # seconds for a relay to say how long its question is
PATIENCE: Final = 120.0  # seconds for a relay to take its answer, or to give its question, whole

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


class Listener(socket.socket):
    """A socket that holds a lock, exclusively, until it is closed."""

    lock: BinaryIO

    def close(self) -> None:
        super().close()
        self.lock.close()


def hold_lock(path: Path) -> BinaryIO:
    """The lock of a file, until it is closed or the process ends. Raises `UserError` where another
    trainer has it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        where = path.with_suffix("")
        raise UserError(f"a trainer is running at {where} already: stop that one first") from error
    return file


def listen_socket(path: Path, users: frozenset[int] | None = None) -> Listener:
    """Bind the socket, and hold a lock, the file next to it. Raises `UserError` where something
    else is there: another trainer that runs, a file.

    users: as of `allowed_users`. For its owner alone its mode is 0600; others could not open that,
    and who they are is asked at each connection (`is_allowed`).
    """
    if len(os.fsencode(path)) > LONGEST_MESSAGE:
        raise UserError(
            f"the path {path} is too long for a socket ({LONGEST_MESSAGE} bytes at most): use a "
            "folder nearer to the root"
        )
    shared = len(users or ()) > 1
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755 if shared else 0o700)
    lock = hold_lock(path.with_name(path.name + ".lock"))
    server = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
    server.lock = lock
    mask = os.umask(0o111 if shared else 0o177)
    try:
        if path.exists():
            _check_abandoned(path)
            path.unlink()
        server.bind(str(path))
    except OSError as error:
        server.close()
        raise UserError(f"cannot listen on {path}: {error}") from error
    except UserError:
        server.close()
        raise
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
    most: int = relay.MOST_BYTES,
    buffered: int = BUFFERED,
) -> None:
    """Answer requests until the process ends, one after another, of `users` alone.

    most: bytes of a request; more are not read. buffered: bytes of all requests that are read,
    wait or are being answered, together; one that is longer than that is the only one. Raises
    OSError where the socket is shut down.
    """
    questions: Questions = SimpleQueue()
    desk = _Desk(questions, users or allowed_users(), most, MemoryBudget(max(buffered, most)))
    threading.Thread(target=_accept, args=(server, desk), daemon=True).start()
    while True:
        question = questions.get()
        if isinstance(question, OSError):
            raise question
        question.reply.put(_answered(question.data, answer))


class OpenQuestion(NamedTuple):
    """What a relay asks, and where its status and answer go."""

    data: bytes
    reply: "SimpleQueue[tuple[bytes, bytes]]"


Questions = SimpleQueue[OpenQuestion | OSError]


class MemoryBudget:
    """Bytes that several threads may hold together; who finds too few waits, in turn."""

    def __init__(self, total: int) -> None:
        self._left, self._total = total, total
        self._changed, self._turn = threading.Condition(), threading.Lock()

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Hold `count` bytes, no more than there are in all, until the end of the block."""
        assert count <= self._total
        with self._turn, self._changed:  # a long message is not overtaken by short ones for ever
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count
        try:
            yield
        finally:
            with self._changed:
                self._left += count
                self._changed.notify_all()


class _Desk(NamedTuple):
    """What the threads of all relays share. most: bytes of a question."""

    questions: Questions
    users: frozenset[int]
    most: int
    budget: MemoryBudget


def _accept(server: socket.socket, desk: _Desk) -> None:
    free = threading.BoundedSemaphore(LINES)

    def serve(line: socket.socket) -> None:
        try:
            with line:
                try:
                    _serve_one(line, desk)
                except Exception as error:  # whatever a relay does, the next one has its line
                    log.warning("a relay went away: %s", error)
        finally:
            free.release()

    while True:
        free.acquire()
        try:
            line, _ = server.accept()
        except OSError as error:
            desk.questions.put(error)
            return
        try:
            threading.Thread(target=serve, args=(line,), daemon=True).start()
        except RuntimeError as error:  # no more threads for now
            log.error("a relay is sent away: %s", error)
            line.close()
            free.release()


def is_allowed(line: socket.socket, users: frozenset[int]) -> bool:
    """Whether the other side runs as one of these (where the system tells; modes guard the
    rest)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] in users)


def _serve_one(line: socket.socket, desk: _Desk) -> None:
    if not is_allowed(line, desk.users):
        log.error("another user tried to connect")
        return
    length = relay.read_length(line, desk.most, time.monotonic() + HURRY)
    # Held until the answer is taken, which is about as long as its question, or much shorter.
    with desk.budget.holding(length):
        status, reply = _ask_trainer(line, length, desk.questions)
        line.settimeout(PATIENCE)  # of each of the two as a whole
        line.sendall(status)
        relay.write_frame(line, reply)


def _ask_trainer(line: socket.socket, length: int, questions: Questions) -> tuple[bytes, bytes]:
    """Read a question and wait for its reply; the question is not kept any longer."""
    data = relay.read_exactly(line, length, time.monotonic() + PATIENCE)
    question = OpenQuestion(data, SimpleQueue())
    questions.put(question)
    return question.reply.get()


def _answered(data: bytes, answer: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
    try:
        return relay.ANSWER, answer(data)
    except UserError as error:  # no request of our server: sent to the relay, logged already
        return relay.ERROR, str(error).encode()
