"""The commands of `experiments`, in this process."""

import pytest
import typer


def run_command(app: typer.Typer, *words: object) -> int:
    """Its exit status."""
    with pytest.raises(SystemExit) as left:
        app([*map(str, words)])
    return int(left.value.code or 0)
