"""Processes that tests start, and all that these start, end with the tests.

A watcher reads from a pipe whose other end is held by the process of the tests alone. However that
ends, by SIGKILL too, the pipe is closed, and the watcher kills every process that has a mark in its
environment, and the children of such. Sessions would not do: Flower's and Ray's processes begin
their own. Linux only, as it reads /proc.
"""

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

MARK: Final = "FEDSDR_TEST_PROCESSES"
WATCHER: Final = """
import os, signal, sys, time
from pathlib import Path

mark = sys.argv[1].encode()

def read_processes():
    parents, marked = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z":
                continue
            parents[int(folder.name)] = int(parent)
            if mark in (folder / "environ").read_bytes():
                marked.add(int(folder.name))
        except OSError:  # it has ended, or is somebody else's
            pass
    return parents, marked

def with_children(parents, marked):
    while more := {each for each, parent in parents.items() if parent in marked} - marked:
        marked = marked | more
    return marked

sys.stdin.read()
for _ in range(300):  # what is killed may be started again by what is killed after it
    found = with_children(*read_processes())
    if not found:
        sys.exit(0)
    for each in found:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            pass
    time.sleep(0.1)
sys.exit("processes are left: " + str(sorted(found)))
"""


@contextmanager
def ending_with_tests() -> Iterator[None]:
    """All processes that are started within are killed at the end, or when this one dies."""
    mark = uuid.uuid4().hex
    watcher = subprocess.Popen(
        [sys.executable, "-S", "-c", WATCHER, f"{MARK}={mark}"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(MARK, mark)
            yield
    finally:
        assert watcher.stdin is not None
        watcher.stdin.close()
        assert watcher.wait(timeout=60) == 0


def is_alive(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(what: str, seconds: float, ready: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)
