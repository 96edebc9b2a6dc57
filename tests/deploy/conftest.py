"""What tests of federations share."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from support.signed_federation import Federation


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Short: the path of a trainer's socket has at most 100 bytes, and pytest's own folders have
    names that grow with the number of its runs."""
    with TemporaryDirectory(prefix="fedsdr-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def federation(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    return Federation(tmp_path)
