"""Files and folders of data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes a file: bytes and texts as they are, lists as JSON (a row a line for .jsonl)."""

    def write_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_bytes(content.encode())
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Saves a `datasets` folder, with splits where names are given."""
    datasets = pytest.importorskip("datasets")

    def save(columns: dict[str, list[Any]], *splits: str, labels: str = "") -> Path:
        datasets.disable_progress_bars()
        data = datasets.Dataset.from_dict(columns)
        if labels:
            data = data.cast_column(labels, datasets.ClassLabel(names=["bad", "good"]))
        kept = datasets.DatasetDict(dict.fromkeys(splits, data)) if splits else data
        kept.save_to_disk(str(tmp_path / "folder"))
        return tmp_path / "folder"

    return save
