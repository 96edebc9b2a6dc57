"""From rows to records: which columns hold the instruction, the response and the rest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Final, NamedTuple

from fedsdr.core.errors import UserError
from fedsdr.core.notices import name_items
from fedsdr.data.cells import cell_list, cell_text, is_filled
from fedsdr.data.conversations import (
    TOOLS,
    NoResponseError,
    RowTurns,
    find_messages,
    learnt_places,
    no_instruction,
    read_conversation,
    read_tools,
)
from fedsdr.data.records import ANSWER_MARK, Record, Turn
from fedsdr.data.rows import (
    Cells,
    RowError,
    SkippedRow,
    Skips,
    SourceTable,
    convert_all,
    json_kind,
)
from fedsdr.recipe.sections.data import Learn, Source


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

    @property
    def columns(self) -> set[str]:
        """The columns that a record is made from."""
        named = {c for place in self.fields.values() for _, c in _parts(place) if c is not None}
        return {*named, self.turns, self.history}


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
FINAL_NUMBER: Final = re.compile(r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")


class RowRecords(NamedTuple):
    """What becomes of a row: its records, one for each response that is learnt.

    answers: assistant turns. unanswered: whether turns follow the last of these. columns, keys:
    those of the row and of its messages that hold something which nothing reads.
    """

    origin: str
    records: tuple[Record, ...]
    answers: int
    unanswered: bool
    columns: frozenset[str]
    keys: frozenset[str]


def rows_to_records(
    table: SourceTable, source: Source, learn: Learn = "last", skips: Skips = ()
) -> tuple[list[RowRecords], list[SkippedRow]]:
    """The records of each row, but for rows whose error is one of `skips`, which are listed.

    Raises `UserError` for a layout that is unknown, for other rows that cannot be records, and
    where no record is left.
    """
    places, rows, unread = table
    columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
    found: list[RowRecords] = []
    skipped = [*unread]
    if rows:
        layout = choose_layout(places.path, columns, source.fields)
        reader = _RowReader(layout, layout.columns, source.category, learn)
        found, invalid = convert_all(
            places, rows, lambda number, cells: reader.records(cells, places.origin(number)), skips
        )
        skipped += invalid
    if skipped and not found:
        raise UserError(
            f"{places.path}: no record is left, since all {len(skipped)} rows are skipped (first "
            f"{skipped[0].place}: {skipped[0].reason}): mend them, name the columns with "
            "fields.instruction and fields.response, or remove the source"
        )
    return found, skipped


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


@dataclass(frozen=True)
class _RowReader:
    """columns: that the layout reads."""

    layout: Layout
    columns: set[str]
    category: str
    learn: Learn

    def records(self, cells: Cells, origin: str) -> RowRecords:
        layout = self.layout
        conversation, column = _conversation(layout, cells)
        places = learnt_places(conversation, self.learn, column)
        responses = [conversation.response(place) for place in places]
        turns, system = conversation.turns, _field(layout, cells, "system").strip()
        read = {*self.columns, *(TOOLS if conversation.tools else ())}
        unused = {name for name in cells if name not in read and is_filled(cells[name])}
        if system and turns[0].role in ("system", "developer"):
            unused.add(layout.fields["system"])  # the conversation has its own
        elif system:
            turns = (Turn("system", _field(layout, cells, "system")), *turns)
            places = [place + 1 for place in places]
        answer = _field(layout, cells, "answer").strip()
        category = _field(layout, cells, "category").strip() or self.category
        records = tuple(
            Record(
                prompt=turns[:place],
                response=responses[number],
                category=category,
                answer=answer or (final_answer(turns[place].text) if layout.marked else ""),
                origin=origin if len(places) == 1 else f"{origin}, answer {number + 1}",
                tools=conversation.tools,
                calls=turns[place].extra,
                place=number,
            )
            for number, place in enumerate(places)
        )
        return RowRecords(
            origin,
            records,
            conversation.answers,
            conversation.unanswered,
            frozenset(unused),
            conversation.unused,
        )


def _conversation(layout: Layout, cells: Cells) -> tuple[RowTurns, str]:
    """The turns of a row, and the column with the responses, for errors."""
    if layout.turns:
        messages = cell_list(cells, layout.turns)
        return read_conversation(messages, layout.turns, read_tools(cells)), layout.turns
    asked, given = (layout.fields[name] for name in REQUIRED)
    prompt, completion = find_messages(cells.get(asked)), find_messages(cells.get(given))
    if prompt or completion:  # TRL's conversational form; either may be a text
        prompt = prompt or [{"role": "user", "content": cells.get(asked)}]
        completion = completion or [{"role": "assistant", "content": cells.get(given)}]
        messages = [*prompt, *completion]
        return read_conversation(messages, given, read_tools(cells), len(prompt)), given
    response = _required(layout, cells, "response")
    texts = (_required(layout, cells, "instruction"), _field(layout, cells, "input"))
    user = Turn("user", "\n\n".join(text for text in texts if text.strip()))
    return RowTurns((*_history(cells, layout.history), user, Turn("assistant", response))), given


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
    texts = {
        column: cell_text(cells.get(column), f"column {column!r}")
        for _, column in parts
        if column is not None
    }
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
    raise NoResponseError(detail) if name == "response" else no_instruction(detail)


def _history(cells: Cells, column: str) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    if not column:
        return ()
    for pair in cell_list(cells, column):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            problem = f"column {column!r} is not a list of [user, assistant] pairs"
            raise RowError(problem, f"one is {json_kind(pair)}", "mend or remove the row")
        user, assistant = (cell_text(value, f"a turn in column {column!r}") for value in pair)
        turns += [Turn("user", user), Turn("assistant", assistant)]
    return tuple(turns)
