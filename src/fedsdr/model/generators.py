"""Who runs a model that writes: `[distill] generator`, one interface, chosen by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fedsdr.model.choose import Job
from fedsdr.model.generate import generate
from fedsdr.model.paged import check_paged, generate_paged

# (model, jobs, stop, temperature, rows) -> new token ids of each job
Generator = Callable[[Any, Sequence[Job], int, float, int | None], list[list[int]]]
GENERATORS: Final[Mapping[str, Generator]] = {"fedsdr": generate, "transformers": generate_paged}


def check_generator(name: str) -> None:
    """Raise `UserError` where a generator cannot be had, before any work starts."""
    if name == "transformers":
        check_paged()
