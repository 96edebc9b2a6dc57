"""Flower's real processes: started as users start them, found, killed, and cleared away."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fedsdr.deploy.flower.simulation import free_port
from support.processes import ending_with_tests

FEDSDR: Final = Path(sys.executable).with_name("fedsdr")


def fedsdr(*words: str) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(
        [FEDSDR, *words], capture_output=True, text=True, timeout=1000, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Submitted(NamedTuple):
    """A run as it was submitted, and what its command prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, seconds: float) -> str:
        """What it has printed when it has ended well."""
        status = self.process.wait(timeout=seconds)
        text = self.log.read_text()
        assert status == 0, text
        return text


class Scripts:
    """The programs of a federation whose folders lie below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, script: Path) -> None:
        """A site's start.sh, in a session of its own."""
        quiet = subprocess.DEVNULL
        self._processes.append(
            subprocess.Popen(
                [script], stdin=quiet, stdout=quiet, stderr=quiet, cwd="/", start_new_session=True
            )
        )

    @contextlib.contextmanager
    def submitted(self, server: Path) -> Iterator[Submitted]:
        """`fedsdr deploy run`, killed at the end if it has not ended."""
        log = self.folder / "submitted.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [FEDSDR, "deploy", "run", server],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        try:
            yield Submitted(process, log)
        finally:
            process.kill()
            process.wait()

    def end(self) -> None:
        """Ask the scripts to end, as a user's Ctrl-C does."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)


@contextlib.contextmanager
def federation(folder: Path) -> Iterator[Scripts]:
    """Programs of a federation below `folder`, of which none is left at the end.

    Then the last lines of every log are printed: pytest shows them where the test has failed.
    """
    scripts = Scripts(folder)
    try:
        with ending_with_tests():
            try:
                yield scripts
            finally:
                scripts.end()
    finally:
        print_logs(folder)


def print_logs(folder: Path, lines: int = 100) -> None:
    """The last lines of every log below a folder."""
    for path in sorted(folder.rglob("*.log")):
        text = path.read_text(errors="replace").splitlines()[-lines:]
        print(f"--- {path.relative_to(folder)}", *text, sep="\n")


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
