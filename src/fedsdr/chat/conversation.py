"""A conversation with a model: its turns, truncation to the context, streamed answers."""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.generation.streaming import TokenStream
from fedsdr.workflows.finished import Models


@dataclass(frozen=True)
class ChatOptions:
    """system: a system prompt, or "". temperature: 0 is greedy. limit: tokens of an answer."""

    system: str = ""
    temperature: float = 0.0
    limit: int = 256
    seed: int = 0


class Conversation:
    """Turns with whichever model of a run is chosen; the base model is loaded once."""

    def __init__(
        self, models: Models, name: str, options: ChatOptions, notice: Callable[[str], None]
    ) -> None:
        self.models, self.options, self.notice = models, options, notice
        self._turns: list[Turn] = []
        self._asked = 0
        self.use(name)

    def use(self, name: str) -> None:
        """Switch to another model of the run; the conversation is kept."""
        self.models.use(name)
        self.name = name
        self._stream = TokenStream(self.models.base.model)

    def reset(self) -> None:
        """Clear the conversation."""
        self._turns = []

    def ask(self, question: str) -> Generator[str, None, None]:
        """The answer in pieces of text; a notice says that it is empty. If it is stopped early, the
        text so far is kept.

        Raises `UserError` where the question alone leaves no room for an answer; it is then
        not part of the conversation.
        """
        chat, context = self.models.base.chat, self.models.base.context
        prompt, self._turns = self._fitting([*self._turns, Turn("user", question)], context)
        room = min(self.options.limit, context - len(prompt))
        draw = seeds.seeded_generator(self.options.seed, "chat", self._asked)
        self._asked += 1
        ids: list[int] = []
        said = ""
        try:
            for token in self._stream.generate(
                prompt, room, chat.ends, self.options.temperature, draw
            ):
                ids.append(token)
                piece = new_text(chat, ids, said)
                said += piece
                if piece:
                    yield piece
            if not said.strip():
                self.notice(f"(an empty answer: {self.name} ended its turn without a word)")
        finally:
            self._turns.append(Turn("assistant", said))

    def _fitting(self, turns: list[Turn], context: int) -> tuple[list[int], list[Turn]]:
        """The prompt's ids and its turns, the oldest exchanges dropped until an answer has room."""
        left = turns
        prompt = self._prompt_ids(left)
        while len(prompt) + self.options.limit > context and len(left) > 1:
            left = left[2:]
            prompt = self._prompt_ids(left)
        if len(prompt) >= context:
            raise UserError(
                f"the message has {len(prompt)} tokens with its frame, and the model's context is "
                f"{context}: say it in fewer words"
            )
        if dropped := (len(turns) - len(left)) // 2:
            self.notice(f"the context is full: the {dropped} oldest exchange(s) were dropped")
        return prompt, left

    def _prompt_ids(self, turns: list[Turn]) -> list[int]:
        system = [Turn("system", self.options.system)] if self.options.system else []
        return self.models.base.chat.prompt_ids((*system, *turns))


def new_text(chat: ChatFormat, ids: list[int], said: str) -> str:
    """The text of the ids beyond `said`; "" while a character is incomplete.

    Trailing white space is held back until more text follows, so that all pieces together are
    `chat.text(ids)`.
    """
    text = chat.text(ids)
    if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(said):
        return ""
    return text[len(said) :]
