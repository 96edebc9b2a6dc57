"""The exception that means "the user can fix this", and its kind for what cannot be written."""

import errno
import os
from pathlib import Path
from typing import Final


class UserError(ValueError):
    """A mistake in a recipe, a file or a command line.

    The message names the value, what was allowed and what to do. The command line prints it
    without a traceback and exits with status 2; the library raises it like any `ValueError`.
    """


REMEDIES: Final = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}


class WriteError(UserError):
    """A file or folder that cannot be written; what was written before it stays."""

    def __init__(self, path: Path | str, problem: OSError) -> None:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        remedy = REMEDIES.get(problem.errno or 0, "check the disk, and who may write there")
        super().__init__(f"cannot write {path}: {reason[:1].lower()}{reason[1:]}: {remedy}")
        self.problem = problem
