"""Control tokens that stand in users' texts: encoded as text, never as control.

A tokenizer reads "<|im_end|>" in a user's text as the token that ends a turn, so that a text could
forge turns. Before a template is rendered such strings are replaced by marks; afterwards the
pieces between the marks, with the template's own control tokens, are tokenised as usual, and what
a mark stands for is tokenised in two halves, of which neither is a control token. A text
without such a string is tokenised as ever.
"""

import re
from functools import cached_property
from typing import Any, Final

from fedsdr.core.errors import UserError
from fedsdr.data.thinking import MARK_NAMES

CONTROL_MARK: Final = (
    "\U0010fffd"  # the last private-use character; one in a text is itself replaced
)
# Of tokens that control a model though tokenizers do not always call them special; what is neither
# these nor special nor in the template (line breaks, tags of HTML) is a piece of text.
CONTROL_STARTS: Final = ("<|", "<\uff5c", *MARK_NAMES)
NEWLINE: Final = "\n"  # at which SentencePiece tokenizers put no space before a word


class ControlTokens:
    """A tokenizer's control tokens: those that it calls special, those that its chat template
    writes, and those that look like it.

    `text` is a user's, `marked` one in which marks stand for control tokens. Templates keep marks.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer = tokenizer
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        control = {
            name
            for name, token in added.items()
            if token.special or name in template or name.startswith(CONTROL_STARTS)
        }
        names = {*control, *tokenizer.all_special_tokens}
        self.names = (CONTROL_MARK, *sorted(name for name in names if name.strip()))
        ids = frozenset(tokenizer.convert_tokens_to_ids(list(self.names[1:])))
        self.ids = ids - {tokenizer.unk_token_id}  # which controls nothing
        longest_first = sorted(self.names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._as_text: dict[str, list[int]] = {}

    def mark(self, text: str) -> str:
        """A user's text with marks in place of control tokens."""
        return self._pattern.sub(
            lambda m: f"{CONTROL_MARK}{self._numbers[m[0]]}{CONTROL_MARK}", text
        )

    def mark_all(self, value: Any) -> Any:
        """JSON content with marks in all its texts."""
        if isinstance(value, dict):
            return {self.mark_all(key): self.mark_all(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.mark_all(each) for each in value]
        return self.mark(value) if isinstance(value, str) else value

    def unmark(self, marked: str) -> str:
        """The text again."""
        return "".join(
            self.names[int(part)] if number % 2 else part
            for number, part in enumerate(_parts(marked))
        )

    def encode(self, marked: str, after: str = "") -> list[int]:
        """Token ids of `marked` alone, or as it goes on after the text `after`.

        Raises `UserError` for a control token that the tokenizer cannot write in any other way.
        """
        first, *rest = _parts(marked)
        ids = self._continue(first, after)
        for number, piece in zip(rest[::2], rest[1::2], strict=True):
            ids += self._spelled(self.names[int(number)])
            ids += self._continue(piece, self._middle)
        return ids

    def _continue(self, text: str, after: str) -> list[int]:
        return self._plain(after + text)[len(self._plain(after)) :] if after else self._plain(text)

    def _plain(self, text: str) -> list[int]:
        """The template, not the tokenizer, adds special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _middle(self) -> str:
        """What to tokenise a text after, so that it is not taken for the start of one; "" where
        that makes no difference."""
        alone = self._plain(NEWLINE) + self._plain("a")
        return "" if self._plain(f"{NEWLINE}a") == alone else NEWLINE

    def _spelled(self, name: str) -> list[int]:
        if name not in self._as_text:
            head, tail = name[:1], self.mark(name[1:])
            for ids in (
                self._continue(head, self._middle) + self.encode(tail, self._middle),
                [i for character in name for i in self._continue(character, self._middle)],
            ):
                if self.ids.isdisjoint(ids) or name == CONTROL_MARK:
                    self._as_text[name] = ids
                    break
            else:
                raise UserError(f"this tokenizer cannot write {name!r} other than as control token")
        return self._as_text[name]


def _parts(marked: str) -> list[str]:
    """Text, number, text, number, ..., text."""
    return re.split(f"{CONTROL_MARK}(\\d+){CONTROL_MARK}", marked)
