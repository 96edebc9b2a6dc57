"""Which chat template a tokenizer is used with, with date and thinking settled in its text."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import TemplateError

from fedsdr.core.errors import UserError
from fedsdr.data.clock import reads_clock, with_date
from fedsdr.data.thinking import (
    ThoughtMarks,
    find_marks,
    has_switch,
    usual_marks,
    with_thinking,
)

NAMED: Final = "name:"  # before the name of one of a tokenizer's several templates
ChatMessages = list[dict[str, Any]]
GREETING: Final[ChatMessages] = [{"role": "user", "content": "Hello"}]


class ChosenTemplate(NamedTuple):
    """text: Jinja. source: which one it is, in words. date: what it prints as today's; "" for
    none. marks: of the model's thoughts."""

    text: str
    source: str
    date: str
    marks: ThoughtMarks


def choose_template(tokenizer: Any, name: str, date: str, thinks: bool) -> ChosenTemplate:
    """`name`, `date`: as `ChatFormat` has them. thinks: whether the model is to think first."""
    text, source = _find(tokenizer, name)
    day = date if reads_clock(text) else ""
    if day:
        text = with_date(text, date)
    found = _find_marks(tokenizer, text)
    knows_thoughts = found is not None or has_switch(text)
    if thinks and not knows_thoughts:
        raise UserError(
            f'model.thinking = "on", but the chat template ({source}) knows no thoughts: set it to '
            '"off", or model.template to one that does'
        )
    if knows_thoughts:
        source = f"{source}, with thinking {'on' if thinks else 'off'}"
    text = with_thinking(text, thinks)
    marks = found or usual_marks(tokenizer.get_added_vocab())
    if found and not thinks:
        text = _without_thoughts(tokenizer, text, marks)
    return ChosenTemplate(text, source, day, marks)


def render_template(
    tokenizer: Any, text: str, messages: ChatMessages, tools: list[Any] | None, ask: bool
) -> str:
    """messages, tools: as templates read them. ask: whether to end with a prompt for an answer."""
    return str(
        tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=text, add_generation_prompt=ask, tokenize=False
        )
    )


def _find_marks(tokenizer: Any, text: str) -> ThoughtMarks | None:
    def render(message: Mapping[str, Any] | None) -> str:
        messages = [*GREETING, *([dict(message)] if message else [])]
        return render_template(tokenizer, text, messages, None, ask=message is None)

    return find_marks(render, text)


def _without_thoughts(tokenizer: Any, text: str, marks: ThoughtMarks) -> str:
    """A template whose prompts leave no thought open."""
    try:
        prompt = render_template(tokenizer, text, GREETING, None, ask=True)
    except TemplateError:  # which is reported where it is used
        return text
    return marks.with_closed_thought(text, prompt) if marks.is_open(prompt) else text


def _find(tokenizer: Any, name: str) -> tuple[str, str]:
    """A template and where it is from."""
    own = tokenizer.chat_template
    if name == "auto" and not own:
        return _shipped("alpaca"), "alpaca, for the tokenizer has none"
    if name == "auto" and isinstance(own, str):
        return own, "the tokenizer's own"
    if name == "auto" or name.startswith(NAMED):
        key = "default" if name == "auto" else name.removeprefix(NAMED)
        return _named(own, key, name), f"the tokenizer's {key!r}"
    if Path(name).is_file():
        try:
            return Path(name).read_text(encoding="utf-8"), name
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read model.template = {name!r}: {error}") from error
    return _shipped(name), name


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
