"""What holds for every test: one thread a process, and no setting of whoever runs them."""

import os
from collections.abc import Iterator

import pytest

# Several processes share the machine and miniatures gain nothing from threads. Before torch is
# imported, here and in subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def own_settings() -> Iterator[None]:
    """Hide what users set as the documentation asks; `real.py` has read the folders of data."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FEDSDR_DATA", "FEDSDR_EVAL", "FEDSDR_JUDGE"):
            patch.delenv(name, raising=False)
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            patch.delenv(name, raising=False)
        yield
