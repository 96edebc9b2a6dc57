"""Generated ids as a text: without thoughts and without what the template writes around it."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedsdr.data.thinking import CLOSES, OPENS


class AnswerText(NamedTuple):
    """What a model wrote in a turn. text: without its thoughts. thought: tokens of these.
    unclosed: it ended in the middle of a thought, so that there is no text."""

    text: str
    thought: int = 0
    unclosed: bool = False


class AnswerReader:
    """opened: whether the prompt ends in the middle of a thought. before: ids of what the template
    writes between a prompt and its answer."""

    def __init__(self, tokenizer: Any, opened: bool, before: Sequence[int]) -> None:
        self.tokenizer, self.opened = tokenizer, opened
        added = tokenizer.get_added_vocab()
        # Where the marks of thoughts are tokens of their own, text that looks like them is text.
        self._opens, self._closes = added.get(OPENS), added.get(CLOSES)
        self._before = self._decode(before)

    def read(self, ids: Sequence[int]) -> AnswerText:
        """ids: without the end of the turn."""
        thought = self._thought_length(ids)
        text = self._decode(ids[thought:])
        inside = self.opened and not thought
        if inside or text.startswith(OPENS) or self._opens in ids[thought:]:
            return AnswerText("", len(ids), unclosed=True)
        return AnswerText(text.removeprefix(self._before).strip(), thought)

    def _thought_length(self, ids: Sequence[int]) -> int:
        """How many ids there are up to the last end of a thought; 0 without one."""
        if self._closes is not None:
            return len(ids) - ids[::-1].index(self._closes) if self._closes in ids else 0
        if not (last := self._decode(ids).count(CLOSES)):
            return 0
        lengths = range(len(ids) + 1)
        return bisect_left(lengths, last, key=lambda n: self._decode(ids[:n]).count(CLOSES))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
