"""However the command of experiments ends, none of its worker processes is left."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from experiments.pool import worker_pool
from support.processes import is_alive, wait_until
from support.repository import REPOSITORY

# A process with two workers that sleep; each writes its number into the folder given.
PARENT = """
import os, sys, time
from pathlib import Path
from experiments.pool import worker_pool

def sleep(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    with worker_pool(2) as pool:
        for future in [pool.submit(sleep, sys.argv[1]) for _ in range(3)]:
            future.result()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, number):
    """The signal reaches the parent alone: a terminal's Ctrl-C is sent to all, who ignore it."""
    script, told = tmp_path / "parent.py", tmp_path / "workers"
    script.write_text(PARENT)
    told.mkdir()
    parent = subprocess.Popen(
        [sys.executable, script, told],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    try:
        wait_until("the workers begin", 60, lambda: len([*told.iterdir()]) == 2)
        children = [int(path.name) for path in told.iterdir()]
        assert all(map(is_alive, children))
        for child in children:
            os.kill(child, signal.SIGINT)  # as a terminal does; it is the parent's to decide
        time.sleep(0.2)
        assert all(map(is_alive, children))
        parent.send_signal(number)
        assert parent.wait(60) != 0
        wait_until("the workers end", 60, lambda: not any(map(is_alive, children)))
    finally:
        parent.kill()


def fail_beside_a_sleeper() -> None:
    with worker_pool(1) as pool:
        pool.submit(time.sleep, 60)
        while not active_children():
            time.sleep(0.01)
        raise KeyError("no")


def test_an_error_ends_the_workers_at_once():
    began = time.monotonic()
    with pytest.raises(KeyError, match="no"):
        fail_beside_a_sleeper()
    assert time.monotonic() - began < 50  # and not the sleeper's 60
    wait_until("the sleeper ends", 60, lambda: not active_children())
