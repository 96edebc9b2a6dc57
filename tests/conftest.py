"""One thread for each test process: several share the machine, and miniatures gain nothing."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in subprocesses
