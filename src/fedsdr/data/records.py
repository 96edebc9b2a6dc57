"""A record: one instruction with its raw response, (c_i, x_i, y_i) in the paper's notation."""

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

ANSWER_MARK: Final = "####"  # GSM8K's: the gold answer follows it in the response
Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    extra: what chat templates read of it besides role and content, a JSON object: `tool_calls` of
        an assistant, `tool_call_id` and `name` of a tool; "" for nothing.
    """

    role: Role
    text: str
    extra: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        extra = json.loads(self.extra) if self.extra else {}
        return {"role": self.role, "content": self.text, **extra}

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The functions that an assistant calls: {"function": {"name", "arguments"}, ...}."""
        return list(self.message.get("tool_calls", ()))


@dataclass(frozen=True)
class Record:
    """A prompt and the response that its client holds for it.

    prompt: the turns before the response; the last one is the user's or a tool's.
    response: the raw response y_i.
    category: the domain or label it is filed under, "" if unknown.
    answer: the gold answer inside the response, where the task has one ("" otherwise): the
        answer checks of the quality gate compare with it.
    origin: file and line, for error messages.
    tools: the functions that the model may call, a JSON list; "" for none.
    calls: the functions that the response calls, as in `Turn.extra`; "" for none.
    place: which learnt response of its conversation this is, from 0. The records of a conversation
        follow one another, and stay with one client, in its training or its held-out records.
    """

    prompt: tuple[Turn, ...]
    response: str
    category: str = ""
    answer: str = ""
    origin: str = field(default="", compare=False)
    tools: str = ""
    calls: str = ""
    place: int = 0

    @property
    def instruction(self) -> str:
        """The text of the last user turn."""
        users = (turn.text for turn in reversed(self.prompt) if turn.role == "user")
        return next(users, self.prompt[-1].text)


@dataclass(frozen=True)
class ClientData:
    """What one client holds: records to learn from and records held out to judge by."""

    name: str
    train: tuple[Record, ...]
    held_out: tuple[Record, ...] = ()
