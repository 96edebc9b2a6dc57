"""Flower's real processes: started as users start them, found, killed, and cleared away."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fedsdr.deploy.flower.simulation import free_port

FEDSDR: Final = Path(sys.executable).with_name("fedsdr")


def fedsdr(*words: str) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(
        [FEDSDR, *words], capture_output=True, text=True, timeout=1000, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Scripts:
    """Scripts that are at work, each in a session of its own."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, script: Path, before: Sequence[str] = ()) -> None:
        quiet = subprocess.DEVNULL
        self.processes.append(
            subprocess.Popen(
                [*before, str(script)], stdin=quiet, stdout=quiet, stderr=quiet, cwd="/",
                start_new_session=True,
            )
        )  # fmt: skip

    def end(self) -> None:
        """And all that they have started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            time.sleep(1)
        for process in self.processes:
            process.wait(timeout=30)


def running(*words: str) -> list[int]:
    """Processes whose command line has all of the words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in line for word in words):
                found.append(int(path.parent.name))
    return found


def kill(*words: str, where: Path | None = None) -> None:
    """SIGKILL what runs under these words, in a folder if one is given."""
    found = running(*words)
    if where is not None:
        found = [each for each in found if Path(f"/proc/{each}/cwd").readlink() == where]
    assert found, words
    for each in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def wait_until(what: str, seconds: float, ready: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def give_free_ports(clients: Sequence[Path]) -> None:
    """Several clients on one machine: their nodes' own ports must be free here."""
    for folder in clients:
        script = folder / "relay" / "start.sh"
        text = re.sub(r"--port \d+ \\", f"--port {free_port()} \\\\", script.read_text())
        script.write_text(text)


class Cable:
    """A TCP cable from a port of its own to another one, which can be cut and mended.

    Cut, it keeps connections open and passes nothing on, as a network does that loses every packet;
    mended, the old connections are gone.
    """

    def __init__(self, target: int) -> None:
        self.target, self.whole = target, threading.Event()
        self.whole.set()
        self._ends: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.whole.clear()

    def mend(self) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.whole.set()

    def close(self) -> None:
        self.mend()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:  # closed
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # nobody is at the other end yet
                near.close()
                continue
            self._ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                self.whole.wait()
                other.sendall(data)
        for end in (one, other):
            end.close()
