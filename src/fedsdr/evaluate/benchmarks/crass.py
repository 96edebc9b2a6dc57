"""CRASS (Frohberg and Binder 2022, arXiv 2112.11941): counterfactual questions, 3 shots."""

from pathlib import Path
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.evaluate.benchmarks.folder import (
    check_texts,
    find_file,
    leading_shots,
    read_lines,
    split_shots,
)
from fedsdr.evaluate.benchmarks.subject import (
    LETTERS,
    Benchmark,
    BenchmarkRow,
    Subject,
    choice_accuracy,
    lettered_question,
)

CRASS_FILES: Final = ("crass/test.jsonl", "crass.jsonl")
SHOTS: Final = "crass/dev.jsonl"
CRASS_FIELDS: Final = ("premise", "question", "options", "answer")
CRASS_LAYOUT: Final = (
    "crass/test.jsonl (or crass.jsonl) with the fields premise, question, options (a list) and "
    "answer (one of them); the shots from crass/dev.jsonl, or else the first rows"
)


def read_crass(data: Path, shots: int) -> list[Subject]:
    """Shots from crass/dev.jsonl where it exists, else the first rows of the test file."""
    path = find_file(data, CRASS_FILES, CRASS_LAYOUT)
    rows = _rows(path)
    if (data / SHOTS).exists():
        return [Subject("crass", leading_shots(data / SHOTS, _rows(data / SHOTS), shots), rows)]
    return [Subject("crass", *split_shots(path, rows, shots))]


def _rows(path: Path) -> list[BenchmarkRow]:
    rows = read_lines(path, CRASS_FIELDS)
    for number, row in enumerate(rows, start=1):
        check_texts(path, number, row, ("premise", "question"))
        options = row["options"]
        texts = isinstance(options, list) and all(isinstance(each, str) for each in options)
        if not texts or not 2 <= len(options) <= len(LETTERS):
            raise UserError(
                f"{path}, row {number}: options must be a list of 2 to {len(LETTERS)} texts"
            )
        if row["answer"] not in options:
            raise UserError(f"{path}, row {number}: the answer is not one of the options")
    return [{key: row[key] for key in CRASS_FIELDS} for row in rows]


def _answer(row: BenchmarkRow) -> int:
    return int(row["options"].index(row["answer"]))


CRASS: Final = Benchmark(
    line="counterfactual questions; the letter of the highest likelihood counts",
    source="Frohberg and Binder 2022; prompts as in declare-lab/instruct-eval",
    shots=3,
    layout=CRASS_LAYOUT,
    metrics=("acc",),
    read=read_crass,
    prompt=lambda row: lettered_question(
        f"{row['premise'].strip()} {row['question'].strip()}", row["options"]
    ),
    target=_answer,
    score=lambda row, said: {"acc": choice_accuracy(said.nats, _answer(row))},
    choices=lambda row: list(LETTERS[: len(row["options"])]),
)
