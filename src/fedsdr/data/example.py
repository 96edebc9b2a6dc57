"""A record as token ids: what a model learns from, and what a teacher of it is shown."""

from dataclasses import dataclass
from typing import Literal

from fedsdr.data.records import Record

# What a client learns from: raw responses, rewrites, both; or texts of the base model alone.
ExampleKind = Literal["raw", "distilled", "mixed", "rehearsed"]


@dataclass(frozen=True)
class Reference:
    """What a teacher of an example is shown in place of the example's prompt.

    prompt: token ids of a prompt that holds the record's own response. limit: the most tokens that
    a student may write in place of that response. record: by which what it writes is checked.
    """

    prompt: tuple[int, ...]
    limit: int
    record: Record


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and its response; only the response is learnt from.

    reference: for losses with a teacher; without one the words are learnt.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    reference: Reference | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)
