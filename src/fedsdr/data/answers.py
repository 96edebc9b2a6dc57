"""Generated ids as a text: without thoughts and without what the template writes around it."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from fedsdr.data.literal import ControlTokens
from fedsdr.data.thinking import ThoughtMarks


class AnswerText(NamedTuple):
    """What a model wrote in a turn. text: without its thoughts. thought: tokens of these.
    unclosed: it ended in the middle of a thought, so that there is no text."""

    text: str
    thought: int = 0
    unclosed: bool = False


class AnswerReader:
    """marks: of thoughts. opened: whether the prompt ends in the middle of a thought. before: what
    the template writes between a prompt and its answer."""

    def __init__(
        self, control: ControlTokens, marks: ThoughtMarks, opened: bool, before: str
    ) -> None:
        self.tokenizer, self.marks, self.opened = control.tokenizer, marks, opened
        opens, closes = control.encode(marks.opens), control.encode(marks.closes)
        # Where marks begin with tokens of their own, text that looks like them is text.
        self._opens = opens[0] if not control.ids.isdisjoint(opens[:1]) else None
        self._closes = closes if not control.ids.isdisjoint(closes[:1]) else None
        self._before = control.encode(before)
        self._before_text = self._decode(self._before)

    def read(self, ids: Sequence[int]) -> AnswerText:
        """ids: without the end of the turn."""
        thought = self._thought_length(ids)
        rest = list(ids[thought:])
        if rest[: len(self._before)] == self._before:
            rest = rest[len(self._before) :]
        text = self._decode(rest)
        inside = self.opened and not thought
        if inside or text.startswith(self.marks.opens) or self._opens in rest:
            return AnswerText("", len(ids), unclosed=True)
        return AnswerText(text.removeprefix(self._before_text).strip(), thought)

    def _thought_length(self, ids: Sequence[int]) -> int:
        """How many ids there are up to the last end of a thought; 0 without one."""
        if self._closes is not None:
            length = len(self._closes)
            ends = range(len(ids), length - 1, -1)
            return next((n for n in ends if list(ids[n - length : n]) == self._closes), 0)
        closes = self.marks.closes
        if not (last := self._decode(ids).count(closes)):
            return 0
        lengths = range(len(ids) + 1)
        return bisect_left(lengths, last, key=lambda n: self._decode(ids[:n]).count(closes))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
