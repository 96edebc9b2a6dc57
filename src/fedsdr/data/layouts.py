"""From rows to records: which columns hold the instruction, the response and the rest."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Final

from fedsdr.core.errors import UserError
from fedsdr.core.notices import name_items
from fedsdr.data.records import ANSWER_MARK, Record, Role, Turn
from fedsdr.data.rows import Cells, Places, Row, RowError, convert_all, json_kind
from fedsdr.recipe.sections.data import Source


@dataclass(frozen=True)
class Layout:
    """Which columns of a row hold a record's parts.

    fields: field of `Source.fields` -> column, or a text with {column} placeholders.
    turns: the column with a conversation, in place of instruction and response.
    history: the column with the [user, assistant] pairs before the instruction.
    marked: the gold answer is the number after `####` in the response.
    """

    fields: Mapping[str, str]
    turns: str = ""
    history: str = ""
    marked: bool = False

    @property
    def needs(self) -> set[str]:
        """The columns without which the layout does not fit."""
        return {self.turns} if self.turns else {self.fields[name] for name in REQUIRED}


REQUIRED: Final = ("instruction", "response")
OPTIONAL: Final = {"category": "category", "system": "system"}  # of every known layout

# The first layout that fits is used. Conversations come first: their files often repeat the
# opening prompt in a column of its own.
LAYOUTS: Final[Mapping[str, Layout]] = {
    "chat": Layout({}, turns="messages"),
    "chat (ShareGPT)": Layout({}, turns="conversations"),
    "alpaca": Layout(
        {"instruction": "instruction", "input": "input", "response": "output"}, history="history"
    ),
    "dolly": Layout(
        {"instruction": "instruction", "input": "context", "response": "response"},
        history="history",
    ),
    "prompt and response": Layout({"instruction": "prompt", "response": "response"}),
    "prompt and completion": Layout({"instruction": "prompt", "response": "completion"}),
    "gsm8k": Layout({"instruction": "question", "response": "answer"}, marked=True),
}
ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
FINAL_NUMBER: Final = re.compile(r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


class NoResponseError(RowError):
    """A row whose response is empty, null or missing: `Source.empty` decides if it is skipped."""

    def __init__(self, detail: str) -> None:
        remedy = 'fill in the response, remove the row, or set empty = "skip" in its source'
        super().__init__("no response", detail, remedy)


def records_from_rows(places: Places, rows: Sequence[Row], source: Source) -> list[Record]:
    """A record for each row, but for those without a response where `source.empty` is "skip".

    Raises `UserError` for a layout that is unknown, for other rows without an instruction or a
    response, and where no record is left.
    """
    columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
    layout = choose_layout(places.path, columns, source.fields)

    def convert(number: int, cells: Cells) -> Record | None:
        try:
            return _record(layout, cells, source.category, places.origin(number))
        except NoResponseError:
            if source.empty == "error":
                raise
            return None

    found = [record for record in convert_all(places, rows, convert) if record is not None]
    if rows and not found:
        raise UserError(
            f'{places.path}: no row has a response, so empty = "skip" leaves no record: name the '
            "responses' column with fields.response, or remove the source"
        )
    return found


def choose_layout(path: Path, columns: Sequence[str], given: Mapping[Any, str]) -> Layout:
    """The layout of a file with these columns.

    `given` (`Source.fields`) with both instruction and response stands alone; with less it
    replaces fields of the known layout that fits. Raises `UserError` where none does.
    """
    alone = all(name in given for name in REQUIRED)
    base = Layout({}) if alone else _known_layout(path, columns)
    if base.turns and (barred := sorted({*REQUIRED, "input"} & given.keys())):
        raise UserError(
            f"{path}: fields.{barred[0]} cannot replace a part of the conversation in column "
            f"{base.turns!r}: remove it, or give both instruction and response"
        )
    for name, place in given.items():
        _check_place(path, columns, name, place)
    # A category column serves any layout; a system column only those whose meaning is known.
    optional = {"category": "category"} if alone else OPTIONAL
    fields = {**optional, **base.fields}
    present = {name: place for name, place in fields.items() if place in columns}
    return Layout({**present, **given}, base.turns, base.history, base.marked)


def _known_layout(path: Path, columns: Sequence[str]) -> Layout:
    for layout in LAYOUTS.values():
        if layout.needs <= set(columns):
            return layout
    known = "; ".join(f"{name}: {', '.join(sorted(it.needs))}" for name, it in LAYOUTS.items())
    raise UserError(
        f"{path}: no known layout fits its columns {_listed(columns)} (known are {known}): say "
        'which to use with fields = {instruction = "COLUMN", response = "COLUMN"}'
    )


def _listed(columns: Sequence[str], shown: int = 20) -> str:
    # repr, since a column's name may hold anything; cut, since a wrong separator makes long ones
    names = [repr(name if len(name) <= 60 else f"{name[:60]}...") for name in columns]
    return name_items(names, shown) or "(none)"


def _check_place(path: Path, columns: Sequence[str], name: str, place: str) -> None:
    """Raise `UserError` unless `place` is a known column or a text with known columns in braces."""
    try:
        parts = _parts(place)
    except ValueError as error:
        raise UserError(
            f"{path}: fields.{name} = {place!r} is not a text with {{column}} places ({error}): "
            "write {{ and }} for braces that are meant as such"
        ) from error
    for _, column in parts:
        if column is not None and column not in columns:
            raise UserError(
                f"{path}: fields.{name} = {place!r} names the column {column!r}, but the columns "
                f"are {_listed(columns)}: use one of these, or a text with {{column}} places"
            )


def _parts(place: str) -> list[tuple[str, str | None]]:
    """(literal text, column) pairs of a text with places, or of a plain column name.

    A place is the column's name and nothing else, so names with dots or brackets work, which
    `str.format_map` takes for attributes and items.
    """
    if "{" not in place and "}" not in place:
        return [("", place)]
    parts = list(Formatter().parse(place))
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError("a place is {column}, without a conversion or a format")
    return [(text, column) for text, column, _, _ in parts]


def _record(layout: Layout, cells: Cells, category: str, origin: str) -> Record:
    system = _field(layout, cells, "system")
    if layout.turns:
        prompt, response = _conversation(cells, layout.turns)
    else:
        response = _required(layout, cells, "response")
        texts = (_required(layout, cells, "instruction"), _field(layout, cells, "input"))
        user = Turn("user", "\n\n".join(text for text in texts if text.strip()))
        prompt = (*_history(cells, layout.history), user)
    if system.strip() and prompt[0].role != "system":
        prompt = (Turn("system", system), *prompt)
    answer = _field(layout, cells, "answer").strip()
    return Record(
        prompt=prompt,
        response=response,
        category=_field(layout, cells, "category").strip() or category,
        answer=answer or (final_answer(response) if layout.marked else ""),
        origin=origin,
    )


def final_answer(response: str) -> str:
    """The first number after the last `####`, as it is written there; "" where there is none."""
    _, mark, rest = response.rpartition(ANSWER_MARK)
    found = FINAL_NUMBER.search(rest) if mark else None
    return found.group() if found else ""


def _field(layout: Layout, cells: Cells, name: str) -> str:
    """The field's text, "" where the row has none. A text with places needs one filled in."""
    if name not in layout.fields:
        return ""
    parts = _parts(layout.fields[name])
    texts = {column: _cell(cells, column) for _, column in parts if column is not None}
    if texts and not any(text.strip() for text in texts.values()):
        return ""
    return "".join(literal + texts.get(column or "", "") for literal, column in parts)


def _required(layout: Layout, cells: Cells, name: str) -> str:
    text = _field(layout, cells, name)
    if text.strip():
        return text
    columns = [column for _, column in _parts(layout.fields[name]) if column is not None]
    column = columns[0] if columns else layout.fields[name]
    state = "missing" if column not in cells else "null" if cells[column] is None else "empty"
    detail = f"column {column!r} is {state}"
    raise NoResponseError(detail) if name == "response" else _no_instruction(detail)


def _no_instruction(detail: str) -> RowError:
    return RowError("no instruction", detail, "fill in the instruction or remove the row")


def _cell(cells: Cells, column: str) -> str:
    return _text(cells.get(column), f"column {column!r}")


def _text(value: Any, what: str) -> str:
    """A text or number as text; null, and the NaN of tables, as ""."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError as error:
            problem = f"{what} is not valid Unicode"
            detail = f"half a surrogate pair at character {error.start + 1}"
            raise RowError(problem, detail, "mend or remove the row") from error
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    remedy = "turn it into text, or name another column in fields"
    raise RowError(f"{what} is not text", f"it is {json_kind(value)}", remedy)


def _conversation(cells: Cells, column: str) -> tuple[tuple[Turn, ...], str]:
    """The turns before the last assistant turn, and that turn's text.

    What follows the last assistant turn, such as a question without a reply, teaches nothing
    and is left out, as are empty system turns.
    """
    turns = [_turn(message, column) for message in _messages(cells, column)]
    turns = [turn for turn in turns if turn.role != "system" or turn.text.strip()]
    replies = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    if not replies:
        raise NoResponseError(f"no assistant turn in column {column!r}")
    *prompt, response = turns[: replies[-1] + 1]
    if not response.text.strip():
        raise NoResponseError(f"the last assistant turn in column {column!r} is empty")
    if not prompt or prompt[-1].role != "user" or not prompt[-1].text.strip():
        detail = f"no user's text before the last assistant turn in column {column!r}"
        raise _no_instruction(detail)
    return tuple(prompt), response.text


def _messages(cells: Cells, column: str) -> list[Any]:
    """The list in a column, which Arrow's older sequences keep as an object of equal lists."""
    value = cells.get(column)
    if isinstance(value, Mapping) and all(isinstance(each, list) for each in value.values()):
        lengths = {len(each) for each in value.values()}
        if len(lengths) == 1:
            return [
                dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)
            ]
    return _list(cells, column)


def _turn(message: Any, column: str) -> Turn:
    remedy = 'write turns as {"role": ..., "content": ...} or {"from": ..., "value": ...}'
    if not isinstance(message, Mapping):
        problem = f"a turn in column {column!r} is not an object"
        raise RowError(problem, f"it is {json_kind(message)}", remedy)
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        problem = f"a turn in column {column!r} has an unknown role"
        given = f"{role!r:.60}" if isinstance(role, str) else json_kind(role)
        detail = f"{given}; known are {', '.join(ROLES)}"
        raise RowError(problem, detail, remedy)
    text = _text(message.get("content", message.get("value")), f"a turn in column {column!r}")
    return Turn(ROLES[role.lower()], text)


def _history(cells: Cells, column: str) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    if not column:
        return ()
    for pair in _list(cells, column):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            problem = f"column {column!r} is not a list of [user, assistant] pairs"
            raise RowError(problem, f"one is {json_kind(pair)}", "mend or remove the row")
        user, assistant = (_text(value, f"a turn in column {column!r}") for value in pair)
        turns += [Turn("user", user), Turn("assistant", assistant)]
    return tuple(turns)


def _list(cells: Cells, column: str) -> list[Any]:
    value = cells.get(column)
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        problem = f"column {column!r} is not a list"
        raise RowError(problem, f"it is {json_kind(value)}", "mend or remove the row")
    return value
