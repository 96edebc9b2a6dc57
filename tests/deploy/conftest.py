"""What tests of federations share."""

import pytest

from support.signed_federation import Federation


@pytest.fixture
def federation(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    return Federation(tmp_path)
