"""What tests start ends with them: see `support.processes`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import ending_with_tests, is_alive, wait_until
from support.repository import REPOSITORY

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")

# Writes its own number and those of two children into a folder: one has a session of its own, the
# other an environment without the mark.
FAMILY = """
import os, subprocess, sys, time
for change in ({"start_new_session": True}, {"env": {}}):
    child = subprocess.Popen(["/bin/sleep", "600"], **change)
    open(os.path.join(sys.argv[1], str(child.pid)), "w")
open(os.path.join(sys.argv[1], str(os.getpid())), "w")
time.sleep(600)
"""
TESTS = """
import subprocess, sys, time
from support.processes import ending_with_tests
with ending_with_tests():
    subprocess.Popen([sys.executable, "-S", "-c", sys.argv[1], sys.argv[2]])
    time.sleep(600)
"""


def family(folder: Path) -> list[int]:
    wait_until("the processes begin", 60, lambda: len([*folder.iterdir()]) == 3)
    found = [int(path.name) for path in folder.iterdir()]
    assert all(map(is_alive, found))
    return found


def test_all_that_was_started_is_killed_at_the_end(tmp_path):
    with ending_with_tests():
        parent = subprocess.Popen([sys.executable, "-S", "-c", FAMILY, str(tmp_path)])
        started = family(tmp_path)
    assert parent.wait(60) == -signal.SIGKILL
    assert not any(map(is_alive, started))


def test_all_that_was_started_is_killed_when_the_tests_are(tmp_path):
    path = os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    tests = subprocess.Popen(
        [sys.executable, "-c", TESTS, FAMILY, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
    )
    started = family(tmp_path)
    tests.kill()
    tests.wait(60)
    wait_until("the processes end", 60, lambda: not any(map(is_alive, started)))
