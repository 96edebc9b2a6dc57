"""Where the checkout is, for tests that read its documents, recipes and scripts."""

from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
