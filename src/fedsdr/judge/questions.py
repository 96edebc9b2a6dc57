"""Questions to judge by: Vicuna's, MT-bench's (several turns, reference answers), or one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedsdr.core.errors import UserError
from fedsdr.data.rows import Cells, RowError, convert_all, json_kind
from fedsdr.data.sources import read_rows
from fedsdr.recipe.sections.data import Source

TEXTS: Final = ("question", "instruction", "prompt")  # fields that may hold a question's text
REFERENCES: Final = "reference*.jsonl"  # next to question.jsonl, as FastChat lays them out


@dataclass(frozen=True)
class JudgeQuestion:
    """One conversation to be held.

    turns: what the user says, turn by turn.
    references: a good answer to each turn, "" where none is known.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...]


def read_questions(
    path: Path, references: Path | None = None, limit: int | None = None
) -> list[JudgeQuestion]:
    """The questions of a file, in its order; the first `limit` where one is given.

    path: a file with FastChat's `turns`, or with a field of `TEXTS`; or a folder that holds
    question.jsonl. references: a file of FastChat's answers; by default one in the
    folder of question.jsonl, and else the field `reference` of the questions themselves.
    Raises `UserError`, naming file and line, for whatever cannot be asked.
    """
    if path.is_dir():
        found = sorted(path.glob(REFERENCES))
        references = references or (found[0] if found else None)
        path = path / "question.jsonl"
    places, rows, _ = read_rows(Source(path=str(path)))
    questions, _ = convert_all(places, rows, _question)
    known = {} if references is None else _read_references(references)
    if not any(question.id in known for question in questions) and known:
        raise UserError(f"{references} has no answer to a question of {path}: check question_id")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise UserError(
                f"{path}: question_id {question.id!r} is there twice: give each its own"
            )
        seen.add(question.id)
    return [_with_references(question, known) for question in questions][:limit]


def _question(number: int, cells: Cells) -> JudgeQuestion:
    turns = _turns(cells)
    given = cells.get("reference") or []
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise RowError(
            "reference is neither a text nor a list of texts", json_kind(cells["reference"]),
            "give one reference answer a turn",
        )  # fmt: skip
    return JudgeQuestion(
        id=str(cells.get("question_id", number)),
        category=str(cells.get("category") or ""),
        turns=turns,
        references=_padded(given, len(turns)),
    )


def _turns(cells: Mapping[str, Any]) -> tuple[str, ...]:
    """FastChat's turns, or the one text; an Alpaca row's input follows its instruction."""
    found = cells.get("turns")
    if found is None:
        names = [name for name in TEXTS if name in cells]
        if not names:
            raise RowError(
                "no question", f"its fields are {', '.join(cells)}",
                f"call the field with the question turns, {', '.join(TEXTS)}",
            )  # fmt: skip
        extra = cells.get("input") or cells.get("context")
        text = cells[names[0]]
        both = isinstance(text, str) and isinstance(extra, str) and extra.strip()
        found = [f"{text}\n\n{extra}" if both else text]
    remedy = "give every turn a text"
    if not isinstance(found, list) or not found:
        raise RowError("turns is not a list of texts", json_kind(found), remedy)
    if bad := [turn for turn in found if not isinstance(turn, str)]:
        raise RowError("a question is not a text", json_kind(bad[0]), remedy)
    if not all(turn.strip() for turn in found):
        raise RowError("a question without text", "it is empty", remedy)
    return tuple(found)


def _read_references(path: Path) -> dict[str, Sequence[str]]:
    """question_id -> an answer a turn, from a file of FastChat's model answers."""
    places, rows, _ = read_rows(Source(path=str(path)))
    return dict(convert_all(places, rows, _reference)[0])


def _reference(number: int, cells: Cells) -> tuple[str, list[str]]:
    try:
        turns = cells["choices"][0]["turns"]
        return str(cells["question_id"]), [str(turn) for turn in turns]
    except (KeyError, IndexError, TypeError) as error:
        raise RowError(
            "not a reference answer", f"{type(error).__name__}: {error}",
            'write {"question_id": 1, "choices": [{"turns": ["..."]}]}',
        ) from error  # fmt: skip


def _with_references(question: JudgeQuestion, known: Mapping[str, Sequence[str]]) -> JudgeQuestion:
    if question.id not in known:
        return question
    given = _padded(known[question.id], len(question.turns))
    return JudgeQuestion(question.id, question.category, question.turns, given)


def _padded(given: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple([*given, *[""] * count][:count])
