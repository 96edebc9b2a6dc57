"""The rewrite cache: generated token ids, keyed by all that they depend on, in one SQLite file.

A key covers the teacher's identity (`fedsdr.model.identity`), the prompt's tokens and the
sampling, so a second method, another run or a resumed one finds what is already there and nothing
stale. Each batch is one transaction: a kill loses at most the batch that was being generated. The
file holds private text and is readable by its owner alone.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fedsdr.core.errors import UserError
from fedsdr.generation.sampling import Job
from fedsdr.model.identity import content_digest


def job_key(teacher: str, job: Job, temperature: float, generator: str = "fedsdr") -> str:
    """The cache key of one generation; a greedy one does not depend on the seed.

    teacher: digest of its identity.
    """
    seed = job.seed if temperature > 0 else 0
    content = [teacher, list(job.prompt), job.limit, temperature, seed, generator]
    if job.contrast:
        content.append([list(job.contrast.prompt), job.contrast.strength, job.contrast.floor])
    return content_digest(content)


class Generations(Protocol):
    """Token ids by key."""

    def get(self, key: str) -> list[int] | None: ...

    def put(self, results: Mapping[str, Sequence[int]]) -> None: ...


class NoCache:
    """Stores nothing, so that a pilot measures what generation costs."""

    def get(self, key: str) -> None:
        return None

    def put(self, results: Mapping[str, Sequence[int]]) -> None:
        pass


class RewriteCache:
    """Open it for as long as it is used: `with RewriteCache(path) as cache`."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise UserError(
                f"cannot write the rewrite cache: {error}: set FEDSDR_CACHE to another folder"
            ) from error
        self._path = path
        with self._database_errors("write"):
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS rewrites (key TEXT PRIMARY KEY, ids TEXT)")

    def __enter__(self) -> "RewriteCache":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def get(self, key: str) -> list[int] | None:
        with self._database_errors("read"):
            row = self._db.execute("SELECT ids FROM rewrites WHERE key = ?", (key,)).fetchone()
        return None if row is None else list(json.loads(row[0]))

    def put(self, results: Mapping[str, Sequence[int]]) -> None:
        """Store a batch in one transaction."""
        rows = [(key, json.dumps(list(ids))) for key, ids in results.items()]
        with self._database_errors("write"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO rewrites VALUES (?, ?)", rows)
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _database_errors(self, what: str) -> Iterator[None]:
        """Converts errors of the database (no space, locked, damaged) into `UserError`."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where it happened
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise UserError(
                    f"the rewrite cache {self._path} is unreadable ({error}): delete it and run "
                    "again"
                ) from error
            raise UserError(
                f"cannot {what} the rewrite cache {self._path}: {error}: make room, wait for the "
                "process that holds it, or set FEDSDR_CACHE to another folder"
            ) from error
