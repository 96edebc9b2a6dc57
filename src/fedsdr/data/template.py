"""From turns to token ids through the model's chat template, and which ids are the response.

Prompt and response are tokenised separately and concatenated: joint tokenisation is not
prefix-stable, so a mask computed by subtraction would sometimes be off by a token. What the
template writes around an answer is learnt with it.
"""

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from fedsdr.core.errors import UserError
from fedsdr.data.answers import AnswerReader, AnswerText
from fedsdr.data.choose_template import choose_template, render_template
from fedsdr.data.example import Example
from fedsdr.data.frame import SHORT_ANSWER, Frame, answer_frame
from fedsdr.data.literal import ControlTokens
from fedsdr.data.records import Record, Turn
from fedsdr.data.template_marks import mark_conversation, said_by
from fedsdr.data.thinking import split_thought
from fedsdr.recipe.sections.model import TEMPLATE_DATE

HELLO: Final = (Turn("user", "Hello"),)


class TemplateRefusalError(UserError):
    """A chat template raises for a conversation; `reason` is its own."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the chat template fails ({reason}): set model.template to another one")
        self.reason = reason


class ChatFormat:
    """A tokenizer with its chat template: prompts, responses and texts as token ids."""

    def __init__(
        self,
        tokenizer: Any,
        template: str = "auto",
        date: str = TEMPLATE_DATE,
        declared: Collection[int] = (),
        thinking: str = "off",
    ) -> None:
        """`template`: "auto" is the tokenizer's own, or Alpaca's where it has none; "name:" and
        one of the tokenizer's, where it has several; a name shipped in `fedsdr/data/templates`; or
        the path of a Jinja file. `date` (YYYY-MM-DD): what is printed by one that asks for today's.
        `declared`: the tokens that the model declares to end a text. `thinking`: "on" for a model
        that is to think before it answers.

        source: which of these it is, in words. date: what it prints as today's; "" for none.
        marks: of the model's thoughts.
        """
        self.tokenizer = tokenizer
        self.declared, self.thinks = frozenset(declared), thinking == "on"
        chosen = choose_template(tokenizer, template, date, self.thinks)
        self.template, self.source, self.date, self.marks = chosen
        self.control = ControlTokens(tokenizer, self.template)
        self._lost: dict[tuple[Any, ...], set[str]] = {}

    # --- Prompts

    def prompt_text(self, turns: tuple[Turn, ...], tools: str = "") -> str:
        """The text that prompts the model for its answer to `turns`. tools: as in `Record`.

        Many templates have no system role: they raise, or drop its text. It is then prepended to
        the first user turn. Raises `TemplateRefusalError` where the template refuses the turns, or
        drops the text of another role, calls of tools, or the tools.
        """
        return self.control.unmark(self._accepted(turns, tools)[1])

    def marked_prompt(self, turns: tuple[Turn, ...]) -> str:
        """`prompt_text` with marks in place of control tokens that stand in users' texts."""
        return self._accepted(turns, "")[1]

    def prompt_ids(self, turns: tuple[Turn, ...], tools: str = "") -> list[int]:
        return self._encode(self._accepted(turns, tools)[1])

    def conversation_text(self, turns: tuple[Turn, ...], answer: str) -> str:
        """The template's own rendering of the turns and the answer to them.

        Raises `TemplateRefusalError` as `prompt_text` does.
        """
        accepted, _ = self._accepted(turns, "")
        try:
            whole = self._render((*accepted, Turn("assistant", answer)), ask=False)
        except Exception as error:  # as in a prompt
            raise _refusal(error) from error
        return self.control.unmark(whole)

    def _accepted(self, turns: tuple[Turn, ...], tools: str) -> tuple[tuple[Turn, ...], str]:
        """The turns as the template takes them, and its prompt with marked control tokens."""
        turns = self._with_known_roles(turns)
        joins = [turn.role for turn in turns[:2]] == ["system", "user"]
        if joins and said_by("system") in self._left_out(turns, tools):
            turns = _without_system(turns)
        if lost := self._left_out(turns, tools):
            raise TemplateRefusalError(f"it leaves out {min(lost)}")
        try:
            return turns, self._render(turns, tools)
        except Exception as error:  # what a template raises is its author's choice
            # The texts, and not the roles, may be what it refuses.
            if turns[0].role == "system" and turns[1].role == "user":
                return self._accepted(_without_system(turns), tools)
            raise _refusal(error) from error

    def _with_known_roles(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """OpenAI's newer "developer" is the system of a template that does not know it."""
        if "developer" in self.template:
            return turns
        return tuple(
            replace(turn, role="system") if turn.role == "developer" else turn for turn in turns
        )

    def _left_out(self, turns: tuple[Turn, ...], tools: str) -> set[str]:
        """What of such turns is missing from the prompt; tried once for each shape of them."""
        shape = (*((turn.role, bool(turn.text), len(turn.calls)) for turn in turns), bool(tools))
        if shape not in self._lost:
            marked, listed, marks = mark_conversation(turns, tools)
            try:
                text = self._render(marked, listed)
            except Exception:  # as above
                joins = [turn.role for turn in turns[:2]] == ["system", "user"]
                self._lost[shape] = {said_by("system")} if joins else set()
            else:
                self._lost[shape] = {part for mark, part in marks.items() if mark not in text}
        return self._lost[shape]

    def _render(self, turns: tuple[Turn, ...], tools: str = "", ask: bool = True) -> str:
        """The template's text, with marked control tokens."""
        listed = self.control.mark_all(json.loads(tools)) if tools else None
        messages = [self._message(turn) for turn in turns]
        return render_template(self.tokenizer, self.template, messages, listed, ask)

    def _message(self, turn: Turn) -> dict[str, Any]:
        """A turn with marked control tokens, but for the template's own marks of a thought."""
        message = turn.message
        text, extra = message.pop("content"), self.control.mark_all(message)
        if turn.role != "assistant":
            return {**extra, "role": turn.role, "content": self.control.mark(text)}
        opens, inner, closes, answer = self.marks.split(text)
        said = opens + self.control.mark(inner) + closes + self.control.mark(answer)
        return {**extra, "role": turn.role, "content": said}

    def ids(self, text: str) -> list[int]:
        """Token ids of a text without marks, as `prompt_text` gives it, or with, as
        `marked_prompt` does: control tokens without a mark are such."""
        return self._encode(text)

    def literal_ids(self, text: str) -> list[int]:
        """Token ids of a text in which what looks like a control token is text."""
        return self._encode(self.control.mark(text))

    def _encode(self, marked: str, after: str = "") -> list[int]:
        try:
            return self.control.encode(marked, after)
        except UserError as error:
            raise TemplateRefusalError(str(error)) from error

    # --- Responses

    def response_ids(self, text: str) -> list[int]:
        """The response as the model should write it, with the token that ends its turn.

        Raises `TemplateRefusalError` where the template alters its words.
        """
        return [*self._encode(self._written(text), self._frame.lead), self.end_of_turn]

    def response_text(self, text: str) -> str:
        """The response as the template writes it, up to the token that ends its turn."""
        return self.control.unmark(self._written(text))

    def _written(self, text: str) -> str:
        """`response_text` with marked control tokens. A thought that a text begins with is left out
        unless the model is to think."""
        thought, frame = split_thought(text, self.marks), self._frame
        answer = thought.answer
        if not frame.fits:
            return self.control.mark(answer)
        whole = self._render((*HELLO, Turn("assistant", answer)), ask=False)
        found = self.marks.rest_of(frame.prompt, whole)
        if found is None or not found.endswith(frame.rest):
            raise TemplateRefusalError("it frames this response unlike others")
        written = found.removesuffix(frame.rest) + frame.after
        if not _contains_words(self.control.unmark(written), answer):
            raise TemplateRefusalError("it leaves out or alters words of the response")
        if thought and self.thinks:
            inner = self.control.mark(thought.inner)
            return self.marks.with_thought(written, frame.before, inner, self._opens_thought)
        return written

    @cached_property
    def _frame(self) -> Frame:
        prompt, whole = "", ""
        with suppress(Exception):  # what a template raises is its author's choice
            prompt = self._accepted(HELLO, "")[1]
            whole = self._render((*HELLO, Turn("assistant", SHORT_ANSWER)), ask=False)
        return answer_frame(self.control, self.marks, prompt, whole)

    @property
    def fits_answers(self) -> bool:
        """Whether the template begins a conversation with its answer as it does the prompt."""
        return self._frame.fits

    @property
    def end_of_turn(self) -> int:
        """The token that the template puts after an assistant's message (or eos)."""
        return self._frame.end

    @cached_property
    def ends(self) -> frozenset[int]:
        """All tokens that end the model's turn: the template's, the tokenizer's, and those that the
        model declares."""
        return self.declared | {self.end_of_turn, int(self.tokenizer.eos_token_id)}

    def is_finished(self, ids: Sequence[int]) -> bool:
        """Whether generated ids end their turn; else they were cut."""
        return bool(ids) and ids[-1] in self.ends

    def encode(self, record: Record, response: str, max_length: int) -> Example | None:
        """A training example of at most `max_length` tokens, or None where it does not fit.

        A long response is cut (without its end of turn, which is not true there); a prompt that
        leaves no room for a single response token makes the example useless.
        """
        prompt = self.prompt_ids(record.prompt, record.tools)
        room = max_length - len(prompt)
        if room < 1:
            return None
        ids = self._calling_ids(record, response) if record.calls else self.response_ids(response)
        return Example(tuple(prompt), tuple(ids[:room]))

    def written_calls(self, record: Record, response: str) -> str:
        """A response with the calls of its record, as the template writes them after its prompt.

        Raises `TemplateRefusalError` where it leaves them out, or changes its prompt with them.
        """
        return self.control.unmark(self._calling(record, response))

    def _calling_ids(self, record: Record, response: str) -> list[int]:
        written = self._calling(record, response)
        return [*self._encode(written, self._frame.lead), self.end_of_turn]

    def _calling(self, record: Record, response: str) -> str:
        """`written_calls` with marked control tokens."""
        turns, prompt = self._accepted(record.prompt, record.tools)
        said = response if self.thinks else split_thought(response, self.marks).answer
        turns = (*turns, Turn("assistant", said, record.calls))
        if lost := self._left_out(turns, record.tools):
            raise TemplateRefusalError(f"it leaves out {min(lost)}")
        try:
            whole = self._render(turns, record.tools, ask=False)
        except Exception as error:  # as in a prompt
            raise _refusal(error) from error
        found = self.marks.rest_of(prompt, whole)
        if found is None:
            raise TemplateRefusalError("what it writes of a call does not begin with its prompt")
        written, mark, rest = found.rpartition(
            self.tokenizer.convert_ids_to_tokens(self.end_of_turn)
        )
        return written if mark else rest

    # --- Generated ids

    def text(self, ids: list[int]) -> str:
        """The text of generated ids, without its end, thoughts, special tokens and outer white
        space."""
        return self.answer(ids).text

    def answer(self, ids: list[int]) -> AnswerText:
        """Generated ids as a text, and what was thought before it."""
        return self._reader.read(ids[:-1] if self.is_finished(ids) else ids)

    @cached_property
    def _reader(self) -> AnswerReader:
        return AnswerReader(self.control, self.marks, self._opens_thought, self._frame.before)

    @property
    def thought_end(self) -> int | str:
        """The last token of what closes a thought; its text, where that is no token of its own."""
        *_, last = self.control.encode(self.marks.closes)
        return last if last in self.control.ids else self.marks.closes

    @cached_property
    def _opens_thought(self) -> bool:
        """Whether prompts end in the middle of a thought."""
        return self.marks.is_open(self._frame.prompt)


def nothing_fits(client: str, limit: int) -> UserError:
    """The error for a client of which no record fits."""
    return UserError(
        f"client {client!r}: no record fits into {limit} tokens: "
        "raise model.max_length, as far as the model's context allows"
    )


def _refusal(error: Exception) -> TemplateRefusalError:
    return TemplateRefusalError(str(error).strip().partition("\n")[0])


def _contains_words(text: str, words: str) -> bool:
    """Whether a text contains another, whatever their white space."""
    return " ".join(words.split()) in " ".join(text.split())


def _without_system(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    system, first, *rest = turns
    return (Turn("user", f"{system.text}\n\n{first.text}"), *rest)
