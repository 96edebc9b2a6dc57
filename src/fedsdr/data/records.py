"""A record: one instruction with its raw response, (c_i, x_i, y_i) in the paper's notation."""

from dataclasses import dataclass, field
from typing import Final, Literal

ANSWER_MARK: Final = "####"  # GSM8K's: the gold answer follows it in the response
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """A prompt and the response that its client holds for it.

    prompt: the turns before the response; the last one is the user's.
    response: the raw response y_i.
    category: the domain or label it is filed under, "" if unknown.
    answer: the gold answer inside the response, where the task has one ("" otherwise): the
        answer checks of the quality gate compare with it.
    origin: file and line, for error messages.
    """

    prompt: tuple[Turn, ...]
    response: str
    category: str = ""
    answer: str = ""
    origin: str = field(default="", compare=False)

    @property
    def instruction(self) -> str:
        """The last user turn."""
        return self.prompt[-1].text


@dataclass(frozen=True)
class ClientData:
    """What one client holds: records to learn from and records held out to judge by."""

    name: str
    train: tuple[Record, ...]
    held_out: tuple[Record, ...] = ()
