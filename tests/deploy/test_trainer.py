"""The socket between relay and trainer: its owner's alone, one trainer's, and nothing is lost."""

import os
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client import relay, trainer
from fedsdr.deploy.client.relay import TrainerError, ask_trainer
from fedsdr.deploy.client.trainer import (
    LONGEST_MESSAGE,
    MemoryBudget,
    allowed_users,
    listen_socket,
    serve_requests,
)
from fedsdr.deploy.protocol.wire import WireError
from fedsdr.deploy.sites import site
from fedsdr.workflows.run_folder import locked_folder


@contextmanager
def serving(
    path: Path,
    answer: Callable[[bytes], bytes],
    users: frozenset[int] | None = None,
    **limits: int,
) -> Iterator[None]:
    """A trainer at work on `path`."""
    server = listen_socket(path, users)

    def run() -> None:
        with suppress(OSError):  # of accept, once the socket is shut down
            serve_requests(server, answer, users, **limits)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        server.close()
    assert not thread.is_alive()


def connected(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.connect(str(path))
    return line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "own" / "t.sock"


@pytest.mark.parametrize("size", [0, 1, 2**20, 3 * 2**20 + 1])
def test_a_message_and_its_answer_pass_whole(path, size):
    data = os.urandom(size)
    with serving(path, lambda asked: asked[::-1] + b"!"):
        assert ask_trainer(path, data) == data[::-1] + b"!"


def test_the_socket_and_its_folder_are_their_owners_alone(path):
    old = os.umask(0)
    try:
        with listen_socket(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert os.umask(0) == 0  # as it was
    finally:
        os.umask(old)


def test_another_user_is_not_answered(path, monkeypatch, caplog):
    asked = []

    class Stranger:
        """A connection of which the system says that user 12345 is at its other end."""

        def getsockopt(self, *place: int) -> bytes:
            assert place[:2] == (socket.SOL_SOCKET, socket.SO_PEERCRED)
            return struct.pack("3i", 1, os.getuid() + 12345, 0)

    mine = trainer.is_allowed
    assert not mine(Stranger(), allowed_users())
    monkeypatch.setattr(trainer, "is_allowed", lambda line, users: mine(Stranger(), users))
    with serving(path, lambda data: asked.append(data) or b""):
        with pytest.raises(TrainerError, match="went away"):
            ask_trainer(path, b"x" * 2**20)
        monkeypatch.setattr(trainer, "is_allowed", mine)
        assert ask_trainer(path, b"mine") == b""
    assert asked == [b"mine"]
    assert "another user tried to connect" in caplog.text


def test_a_relay_may_run_as_one_other_user(path, monkeypatch):
    monkeypatch.setattr(
        trainer.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=os.getuid() + 12345)
    )
    users = allowed_users("relay")
    assert users == {os.getuid(), os.getuid() + 12345}
    with listen_socket(path, users):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o011 == 0o011


def test_a_relay_user_needs_a_system_that_tells_who_connects(monkeypatch):
    monkeypatch.delattr(trainer.socket, "SO_PEERCRED")
    assert allowed_users("") == {os.getuid()}
    with pytest.raises(UserError, match="--relay-user needs a system that tells who connects"):
        allowed_users("relay")


def test_a_relay_user_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match="--relay-user 'no-such-user': there is no such user"):
        allowed_users("no-such-user")


ASK = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from relay import ask_trainer as ask
print(ask(Path(sys.argv[2]), b"question", 5).decode())
print(Path(sys.argv[3]).read_text())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("relay_user", "end"),
    [("nobody", "PermissionError"), ("daemon", "went away"), ("", "Permission denied")],
)
def test_an_app_that_runs_as_the_relays_user_can_ask_and_read_nothing(relay_user, end):
    """Asked by `nobody`: answered where that is the relay's user, whom the client's folder is
    closed to; no other user gets anything."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        shutil.copy(relay.__file__, place / "relay.py")
        (place / "relay.py").chmod(0o644)
        (place / "own").mkdir(mode=0o700)
        (place / "own" / "record.txt").write_text("a record")
        users = allowed_users(relay_user)
        with serving(place / "t.sock", lambda asked: asked + b"!", users):
            words = [folder, str(place / "t.sock"), str(place / "own" / "record.txt")]
            done = subprocess.run(
                ["python3", "-c", ASK, *words], user="nobody", group=65534, extra_groups=[],
                capture_output=True, text=True, cwd="/",
            )  # fmt: skip
        assert done.returncode != 0
        assert done.stdout == ("question!\n" if relay_user == "nobody" else "")
        assert end in done.stderr


def test_two_trainers_do_not_take_over_one_abandoned_socket(path, monkeypatch):
    """The second one begins when the first has found the socket abandoned."""
    listen_socket(path).close()
    found = trainer._check_abandoned

    def meanwhile(there: Path) -> None:
        found(there)
        with pytest.raises(UserError, match="already: stop that one first"):
            listen_socket(path)

    monkeypatch.setattr(trainer, "_check_abandoned", meanwhile)
    with serving(path, lambda asked: b"first"):
        assert ask_trainer(path, b"") == b"first"
    listen_socket(path).close()  # the lock has gone with it


def test_two_trainers_do_not_share_a_client(tmp_path, monkeypatch):
    """By sockets in two places, say."""
    monkeypatch.setattr(site, "open_client", lambda *_: pytest.fail("it has begun"))
    with locked_folder(tmp_path), pytest.raises(UserError, match="is in use by process"):
        site.run_trainer(tmp_path, silent_reporter(), tmp_path / "other.sock")


def test_a_relay_that_drips_holds_up_no_other_and_is_cut_off(path, monkeypatch, caplog):
    monkeypatch.setattr(trainer, "PATIENCE", 0.6)
    with serving(path, lambda asked: asked + b"!"):
        drips = [connected(path) for _ in range(trainer.LINES - 1)]
        for line in drips:
            line.sendall((9).to_bytes(8, "big"))
        began = time.monotonic()
        assert ask_trainer(path, b"x") == b"x!"
        assert time.monotonic() - began < 0.5
        cut = False
        while not cut and time.monotonic() - began < 10:  # each byte comes long before the time
            time.sleep(0.1)
            try:
                drips[0].sendall(b".")
            except OSError:
                cut = True
        assert cut
        assert time.monotonic() - began < 5
        for line in drips:
            line.close()
    assert "a relay went away" in caplog.text


def test_a_relay_that_does_not_begin_is_cut_off_early(path, monkeypatch):
    monkeypatch.setattr(trainer, "HURRY", 0.2)
    with serving(path, lambda asked: asked + b"!"):
        silent = [connected(path) for _ in range(trainer.LINES)]
        assert ask_trainer(path, b"late") == b"late!"
        for line in silent:
            line.settimeout(30)
            assert line.recv(1) == b""
            line.close()


@pytest.mark.parametrize("fault", ["thread", "relay"])
def test_no_fault_costs_a_line_for_good(path, monkeypatch, fault):
    """After as many as there are lines, the next relay is served."""
    faults = iter(range(trainer.LINES + 1))
    start, serve = threading.Thread.start, trainer._serve_one

    def starting(self: threading.Thread) -> None:
        if self.name.endswith("(serve)") and next(faults, None) is not None:
            raise RuntimeError("can't start new thread")
        start(self)

    def serving_one(*args: object) -> None:
        if next(faults, None) is not None:
            raise MemoryError
        serve(*args)

    if fault == "thread":
        monkeypatch.setattr(threading.Thread, "start", starting)
    else:
        monkeypatch.setattr(trainer, "_serve_one", serving_one)
    with serving(path, lambda asked: asked + b"!"):
        for _ in range(trainer.LINES + 1):
            with pytest.raises(TrainerError):
                ask_trainer(path, b"question")
        assert ask_trainer(path, b"question") == b"question!"


def test_no_more_is_read_than_a_request_can_have(path, caplog):
    server = listen_socket(path)
    asked: list[bytes] = []

    def run() -> None:
        with suppress(OSError):
            serve_requests(server, lambda data: asked.append(data) or b"", most=10)

    thread = threading.Thread(target=run)
    thread.start()
    assert ask_trainer(path, b"x" * 10) == b""
    with connected(path) as line:
        line.sendall((11).to_bytes(8, "big"))
        assert line.recv(1) == b""
    server.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    server.close()
    assert asked == [b"x" * 10]
    assert "11 bytes is larger than 10" in caplog.text


def test_all_that_is_read_at_once_stays_within_a_budget(path, monkeypatch):
    """However many relays send questions of the greatest length, and each is answered."""
    held, most_held, lock = [0], [0], threading.Lock()
    ask = trainer._ask_trainer

    def asking(line: socket.socket, length: int, questions: trainer.Questions) -> object:
        with lock:
            held[0] += length
            most_held[0] = max(most_held[0], held[0])
        try:
            time.sleep(0.01)
            return ask(line, length, questions)
        finally:
            with lock:
                held[0] -= length

    monkeypatch.setattr(trainer, "_ask_trainer", asking)
    messages = [bytes([k]) * (60 if k % 3 else 1 + k) for k in range(40)]
    with (
        serving(path, lambda asked: asked[::-1] + b"!", most=60, buffered=130),
        ThreadPoolExecutor(len(messages)) as pool,
    ):
        answers = [*pool.map(lambda message: ask_trainer(path, message), messages)]
    assert answers == [message + b"!" for message in messages]
    assert 120 <= most_held[0] <= 130


def test_a_relay_that_goes_away_gives_its_memory_back(path, monkeypatch):
    monkeypatch.setattr(trainer, "PATIENCE", 0.5)
    with serving(path, lambda asked: asked, most=60, buffered=60):
        gone, silent = connected(path), connected(path)
        for line in (gone, silent):
            line.sendall((60).to_bytes(8, "big") + b"half")
        gone.close()
        assert ask_trainer(path, b"x" * 60) == b"x" * 60
        silent.close()


def test_a_question_that_is_longer_than_the_budget_is_read_alone(path):
    with serving(path, lambda asked: asked, most=60, buffered=10):
        assert ask_trainer(path, b"x" * 60) == b"x" * 60


def test_who_waits_for_much_memory_is_not_overtaken_by_who_needs_little():
    budget, order = MemoryBudget(10), []

    def hold(count: int) -> None:
        with budget.holding(count):
            order.append(count)

    threads = [threading.Thread(target=hold, args=(count,)) for count in (9, 2)]
    with budget.holding(5):
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == [9, 2]


def test_questions_are_carried_out_in_one_thread(path):
    """The one that serves: a model's arithmetic may depend on the thread."""
    threads = set()

    def answer(asked: bytes) -> bytes:
        threads.add(threading.current_thread())
        return asked

    with serving(path, answer):
        for _ in range(3):
            ask_trainer(path, b"x")
    assert len(threads) == 1


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(path):
    listen_socket(path).close()
    assert path.is_socket()  # as a killed trainer leaves it
    with serving(path, lambda asked: b"first"):
        with pytest.raises(UserError, match=r"running at .* already: stop that one first"):
            listen_socket(path)
        assert ask_trainer(path, b"") == b"first"


def test_a_file_in_the_sockets_place_is_not_written_over(path):
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(UserError, match="is not a socket, and is not written over"):
        listen_socket(path)
    assert path.read_text() == "mine"


def test_too_long_a_path_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"{LONGEST_MESSAGE} bytes at most.: use a folder nearer"):
        listen_socket(tmp_path / ("x" * 100))
    assert list(tmp_path.iterdir()) == []


def test_a_relay_waits_for_a_trainer_that_starts_late(path):
    answers = []
    early = threading.Thread(
        target=lambda: answers.append(ask_trainer(path, b"early", patience=30))
    )
    early.start()
    time.sleep(0.3)
    with serving(path, lambda asked: asked + b"!"):
        early.join(30)
    assert answers == [b"early!"]


def test_a_relay_gives_up_in_the_end(path):
    with pytest.raises(TrainerError, match=r"no trainer at .*: start it first"):
        ask_trainer(path, b"", patience=0)


def test_what_a_trainer_refuses_is_told_in_words(path):
    def refuse(asked: bytes) -> bytes:
        raise WireError("not a message: ü")

    with serving(path, refuse):
        for _ in range(2):  # and it goes on
            with pytest.raises(TrainerError, match="not a message: ü"):
                ask_trainer(path, b"x")


def test_an_answer_is_not_lost_with_its_relay(path):
    """A relay hangs up while the trainer works; another one gets what was worked out."""
    begun, leave, kept = threading.Event(), threading.Event(), {}

    def answer(asked: bytes) -> bytes:
        if asked not in kept:
            begun.set()
            leave.wait(30)
            kept[asked] = b"worked out once " + bytes(2**22)  # more than a socket holds
        return kept[asked]

    with serving(path, answer):
        with connected(path) as line:
            relay.write_frame(line, b"question")
            assert begun.wait(30)
        leave.set()
        begun.clear()
        assert ask_trainer(path, b"question").startswith(b"worked out once")
        assert not begun.is_set()


def test_an_announced_length_is_not_taken_at_its_word(path, caplog):
    with serving(path, lambda asked: b""):
        with connected(path) as line:
            line.sendall((relay.MOST_BYTES + 1).to_bytes(8, "big"))
            assert line.recv(1) == b""  # hung up on
        assert ask_trainer(path, b"") == b""
    assert f"larger than {relay.MOST_BYTES}" in caplog.text


def test_a_message_that_ends_early_is_an_error_of_the_line():
    near, far = socket.socketpair()
    with far:
        with near:
            near.sendall((9).to_bytes(8, "big") + b"half")
        with pytest.raises(ConnectionError, match="in the middle"):
            relay.read_frame(far)


def test_whatever_a_trainer_writes_is_its_owners_alone(tmp_path, monkeypatch):
    def write(folder: Path, reporter: object) -> None:
        (folder / "private" / "distillation.json").write_text("{}")
        raise UserError("enough")

    monkeypatch.setattr(site, "open_client", write)
    old = os.umask(0o022)
    try:
        with pytest.raises(UserError, match="enough"):
            site.run_trainer(tmp_path, silent_reporter())
    finally:
        os.umask(old)
    assert {path.name for path in tmp_path.iterdir()} == {"private", f"{site.SOCKET}.lock"}
    entry = tmp_path / "private"
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700
    assert stat.S_IMODE((entry / "distillation.json").stat().st_mode) == 0o600
