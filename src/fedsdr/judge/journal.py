"""A JSONL file of results, appended as they arrive and read again on resuming."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedsdr.core import files
from fedsdr.core.errors import UserError

JournalRow = dict[str, Any]


class VerdictJournal:
    """Rows by key. The file is readable by its owner only: answers may contain training data.

    A kill loses at most the line that was being written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            rows = files.read_json_lines(path)
            self._rows: dict[str, JournalRow] = {row["key"]: row for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete it, and it is made anew"
            ) from error
        # Rewritten, since rows appended to a line that a kill cut short would be lost with it.
        files.write_json_lines(path, self._rows.values(), private=True)

    def get(self, key: str) -> JournalRow | None:
        return self._rows.get(key)

    def append(self, rows: Iterable[JournalRow]) -> None:
        """Store rows, each with its "key", before the next work begins."""
        new = list(rows)
        files.append_json_lines(self.path, new)
        self._rows |= {row["key"]: row for row in new}
