"""Real data and benchmarks, for tests that are left out where these are not present.

FEDSDR_DATA and FEDSDR_EVAL name their folders; by default `shared/data` and `shared/eval` beside
the checkout. They are read here, and `conftest.py` hides them from everything else.
"""

import os
from pathlib import Path
from typing import Final

import pytest

from support.repository import REPOSITORY

SHARED: Final = REPOSITORY.parent / "shared"
DATA: Final = Path(os.environ.get("FEDSDR_DATA") or SHARED / "data")
EVAL: Final = Path(os.environ.get("FEDSDR_EVAL") or SHARED / "eval")


def data_file(name: str) -> Path:
    """A file of the real data; without it, the test is skipped."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data {name} is not in {DATA}: set FEDSDR_DATA to its folder")
    return path
