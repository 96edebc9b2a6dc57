"""What holds for every test: one thread a process, and no setting of whoever runs them."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

# Several processes share the machine and miniatures gain nothing from threads. Before torch is
# imported, here and in subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read when flwr is imported: tests send no usage reports and look for no updates.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
pytest.register_assert_rewrite("support")


@pytest.fixture(autouse=True, scope="session")
def own_settings() -> Iterator[None]:
    """Hide what users set as the documentation asks; `support.real_data` has read the folders."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FEDSDR_DATA", "FEDSDR_EVAL", "FEDSDR_JUDGE"):
            patch.delenv(name, raising=False)
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def file_limit() -> Callable[[int], AbstractContextManager[None]]:
    """A real limit in bytes of what may be written into one file, as on a full disk."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is left with it at the end."""

    def minutes(item: pytest.Item) -> float:
        mark = item.get_closest_marker("slow")
        return mark.kwargs.get("minutes", 0) if mark else 0

    items.sort(key=minutes, reverse=True)
