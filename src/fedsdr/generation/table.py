"""Generators by name (`distill.generator`), all of one interface."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fedsdr.generation.batched import generate_batch
from fedsdr.generation.paged import check_paged, generate_paged
from fedsdr.generation.sampling import Job, Stop

# (model, jobs, stop, temperature, rows) -> new token ids of each job
Generator = Callable[[Any, Sequence[Job], Stop, float, int | None], list[list[int]]]
GENERATORS: Final[Mapping[str, Generator]] = {
    "fedsdr": generate_batch,
    "transformers": generate_paged,
}


def check_generator(name: str) -> None:
    """Raise `UserError` where a generator is not available, before any work starts."""
    if name == "transformers":
        check_paged()
