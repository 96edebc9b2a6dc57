"""A recipe's file."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_recipe(content: str | dict[str, Any]) -> Path:
        path = tmp_path / "recipe.toml"
        text = content if isinstance(content, str) else tomli_w.dumps(content)
        path.write_text(text, encoding="utf-8")
        return path

    return write_recipe
