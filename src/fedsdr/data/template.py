"""From turns to token ids through the model's chat template, and which ids are the response.

Prompt and response are tokenised separately and concatenated: joint tokenisation is not
prefix-stable, so a mask computed by subtraction would sometimes be off by a token.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError

from fedsdr.core.errors import UserError
from fedsdr.data.clock import reads_clock, with_date
from fedsdr.data.records import Record, Turn
from fedsdr.recipe.sections.model import TEMPLATE_DATE

NAMED: Final = "name:"  # before the name of one of a tokenizer's several templates
SENTINEL: Final = "Turn number "  # a text that no template has of its own


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and its response; only the response is learnt from."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


class TemplateRefusalError(UserError):
    """A chat template raises for a conversation; `reason` is its own."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the chat template fails ({reason}): set model.template to another one")
        self.reason = reason


class ChatFormat:
    """A tokenizer with its chat template: prompts, responses and texts as token ids."""

    def __init__(self, tokenizer: Any, template: str = "auto", date: str = TEMPLATE_DATE) -> None:
        """`template`: "auto" is the tokenizer's own, or Alpaca's where it has none; "name:" and
        one of the tokenizer's, where it has several; a name shipped in `fedsdr/data/templates`; or
        the path of a Jinja file. `date` (YYYY-MM-DD): what is printed by one that asks for today's.

        source: which of these it is, in words. date: what it prints as today's; "" for none.
        """
        self.tokenizer = tokenizer
        self.template, self.source = self._choose(template)
        self.date = date if reads_clock(self.template) else ""
        if self.date:
            self.template = with_date(self.template, date)
        self._lost: dict[tuple[Any, ...], set[str]] = {}

    def _choose(self, template: str) -> tuple[str, str]:
        own = self.tokenizer.chat_template
        if template == "auto" and not own:
            return _shipped("alpaca"), "alpaca, for the tokenizer has none"
        if template == "auto" and isinstance(own, str):
            return own, "the tokenizer's own"
        if template == "auto" or template.startswith(NAMED):
            name = "default" if template == "auto" else template.removeprefix(NAMED)
            return _named(own, name, template), f"the tokenizer's {name!r}"
        if Path(template).is_file():
            try:
                return Path(template).read_text(encoding="utf-8"), template
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read model.template = {template!r}: {error}") from error
        return _shipped(template), template

    def prompt_text(self, turns: tuple[Turn, ...], tools: str = "") -> str:
        """The text that prompts the model for its answer to `turns`. tools: as in `Record`.

        Many templates have no system role: they raise, or drop its text. It is then prepended to
        the first user turn. Raises `TemplateRefusalError` where the template refuses the turns, or
        drops the text of another role, calls of tools, or the tools.
        """
        return self._accepted(turns, tools)[1]

    def _accepted(self, turns: tuple[Turn, ...], tools: str) -> tuple[tuple[Turn, ...], str]:
        """The turns in a form that the template takes, and the prompt that it makes of them."""
        turns = self._with_known_roles(turns)
        joins = [turn.role for turn in turns[:2]] == ["system", "user"]
        if joins and _said_by("system") in self._left_out(turns, tools):
            turns = _without_system(turns)
        if lost := self._left_out(turns, tools):
            raise TemplateRefusalError(f"it leaves out {min(lost)}")
        try:
            return turns, self._render(turns, tools)
        except Exception as error:  # what a template raises is its author's choice
            # The texts, and not the roles, may be what it refuses.
            if turns[0].role == "system" and turns[1].role == "user":
                return self._accepted(_without_system(turns), tools)
            raise TemplateRefusalError(str(error).strip().partition("\n")[0]) from error

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
                self._lost[shape] = {_said_by("system")} if joins else set()
            else:
                self._lost[shape] = {part for mark, part in marks.items() if mark not in text}
        return self._lost[shape]

    def _render(self, turns: tuple[Turn, ...], tools: str = "", ask: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [turn.message for turn in turns],
                tools=json.loads(tools) if tools else None,
                chat_template=self.template,
                add_generation_prompt=ask,
                tokenize=False,
            )
        )

    def ids(self, text: str) -> list[int]:
        """Token ids of `text` alone; the template, not the tokenizer, adds special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, turns: tuple[Turn, ...], tools: str = "") -> list[int]:
        return self.ids(self.prompt_text(turns, tools))

    def response_ids(self, text: str) -> list[int]:
        """The response as the model should write it, with the token that ends its turn."""
        return [*self.ids(text), self.end_of_turn]

    @cached_property
    def end_of_turn(self) -> int:
        """The token that the template puts after an assistant's message (or eos)."""
        probe = (Turn("user", "Hello"), Turn("assistant", "Yes"))
        try:
            rest = self._render(probe, ask=False).rpartition("Yes")[2]
        except TemplateError:
            rest = ""
        # Some tokenizers (Gemma 3) mark their turns by tokens that only this table calls special.
        added = self.tokenizer.added_tokens_decoder.items()
        special = {*self.tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        marks = [i for i in self.ids(rest) if i in special]
        return int(marks[0] if marks else self.tokenizer.eos_token_id)

    def encode(self, record: Record, response: str, max_length: int) -> Example | None:
        """A training example of at most `max_length` tokens, or None where it does not fit.

        A long response is cut (without its end of turn, which is not true there); a prompt that
        leaves no room for a single response token makes the example useless.
        """
        prompt = self.prompt_ids(record.prompt, record.tools)
        room = max_length - len(prompt)
        if room < 1:
            return None
        written = self.written_calls(record, response) if record.calls else response
        return Example(tuple(prompt), tuple(self.response_ids(written)[:room]))

    def written_calls(self, record: Record, response: str) -> str:
        """A response with the calls of its record, as the template writes them after its prompt.

        Raises `TemplateRefusalError` where it leaves them out, or changes its prompt with them.
        """
        turns, prompt = self._accepted(record.prompt, record.tools)
        turns = (*turns, Turn("assistant", response, record.calls))
        if lost := self._left_out(turns, record.tools):
            raise TemplateRefusalError(f"it leaves out {min(lost)}")
        try:
            whole = self._render(turns, record.tools, ask=False)
        except Exception as error:  # as in a prompt
            raise TemplateRefusalError(str(error).strip().partition("\n")[0]) from error
        if not whole.startswith(prompt):
            raise TemplateRefusalError("what it writes of a call does not begin with its prompt")
        end = self.tokenizer.convert_ids_to_tokens(self.end_of_turn)
        written, mark, rest = whole.removeprefix(prompt).rpartition(end)
        return written if mark else rest

    def text(self, ids: list[int]) -> str:
        """The text of generated ids, without special tokens and outer white space."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def nothing_fits(client: str, limit: int) -> UserError:
    """The error for a client of which no record fits."""
    return UserError(
        f"client {client!r}: no record fits into {limit} tokens: "
        "raise model.max_length, as far as the model's context allows"
    )


def _named(own: Any, name: str, template: str) -> str:
    """One of a tokenizer's templates; `own` is what it has: a dictionary, a single one, or None."""
    there = own if isinstance(own, dict) else {}
    if name in there:
        return str(there[name])
    if not there:
        has = "no chat template" if own is None else "a single chat template, without a name"
        raise UserError(
            f"model.template = {template!r}, but the tokenizer has {has}: set it to 'auto'"
        )
    names = ", ".join(repr(each) for each in sorted(there))
    raise UserError(
        f"model.template = {template!r}: the tokenizer has the chat templates {names}, and none "
        f'called {name!r}: name one, as in model.template = "{NAMED}{min(there)}"'
    )


def mark_conversation(
    turns: tuple[Turn, ...], tools: str
) -> tuple[tuple[Turn, ...], str, dict[str, str]]:
    """The turns and tools with marks that no template has of its own, for texts and for names of
    functions; and mark -> what it stands for, in words."""
    marks: dict[str, str] = {}
    marked = []
    for place, turn in enumerate(turns):
        extra, text = json.loads(turn.extra or "{}"), turn.text
        for number, call in enumerate(turn.calls):
            name = f"function_{place}_{number}"
            marks[name] = "calls of tools"
            extra["tool_calls"][number] = call | {"function": call["function"] | {"name": name}}
        if text or not turn.calls:
            text = f"{SENTINEL}{place}."
            marks[text] = _said_by(turn.role)
        marked.append(Turn(turn.role, text, json.dumps(extra)))
    listed = json.loads(tools) if tools else []
    for number, tool in enumerate(listed):
        name = f"tool_number_{number}"
        marks[name] = "the list of tools"
        listed[number] = tool | {"function": tool["function"] | {"name": name}}
    return tuple(marked), json.dumps(listed) if listed else "", marks


def _said_by(role: str) -> str:
    return f"what the {role} says"


def _without_system(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    system, first, *rest = turns
    return (Turn("user", f"{system.text}\n\n{first.text}"), *rest)


def _shipped(name: str) -> str:
    folder = resources.files("fedsdr.data") / "templates"
    file = folder / f"{name}.jinja"
    if not file.is_file():
        names = sorted(entry.name.removesuffix(".jinja") for entry in folder.iterdir())
        raise UserError(
            f"model.template = {name!r} is neither a file nor one of {['auto', *names]}: "
            "give the path of a Jinja chat template or one of these names"
        )
    return file.read_text(encoding="utf-8")
