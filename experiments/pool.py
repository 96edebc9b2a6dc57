"""Worker processes that never outlive their parent.

After an error or Ctrl-C the parent stops them; if it is killed they notice within a second that
their parent process has changed, and exit. Cells are resumed where they were.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context

SECONDS = 0.5  # between two checks of the parent process


@contextmanager
def worker_pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of `jobs` processes of one thread each."""
    before = {*active_children()}
    context, parent = get_context("spawn"), (os.getpid(),)
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in {*active_children()} - before:
                worker.terminate()
            raise


def _begin(parent: int) -> None:
    """In a worker: leave Ctrl-C to the parent and live no longer than it; use one thread, since
    so many small models gain nothing from more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_live_with, args=(parent,), daemon=True).start()
    import torch  # here, so that a worker watches its parent while this takes its time

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _live_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os._exit(1)
