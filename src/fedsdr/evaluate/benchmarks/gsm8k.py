"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): school mathematics, worked answers, 5 shots."""

import re
from pathlib import Path
from typing import Final

from fedsdr.errors import UserError
from fedsdr.evaluate.benchmarks.folder import check_texts, find, first, read_lines
from fedsdr.evaluate.benchmarks.subject import Benchmark, Row, Scores, Subject

FIELDS: Final = ("question", "answer")
LAYOUT: Final = (
    "gsm8k/train.jsonl and gsm8k/test.jsonl (or gsm8k_train.jsonl and gsm8k_test.jsonl) with the "
    "fields question and answer (its result after ####)"
)
MARKED: Final = re.compile(r"#### (-?[0-9.,]+)")
NUMBER: Final = re.compile(r"-?\$?[0-9][0-9.,]*")


def read(data: Path, shots: int) -> list[Subject]:
    """The first `shots` rows of the training file are the shots."""
    train, test = (
        find(data, [f"gsm8k/{part}.jsonl", f"gsm8k_{part}.jsonl"], LAYOUT)
        for part in ("train", "test")
    )
    return [Subject("gsm8k", first(train, _rows(train), shots), _rows(test))]


def _rows(path: Path) -> list[Row]:
    rows = read_lines(path, FIELDS)
    for number, row in enumerate(rows, start=1):
        check_texts(path, number, row, FIELDS)
        if not MARKED.search(row["answer"]):
            raise UserError(f"{path}, row {number}: the answer has no result after ####")
    return [{key: row[key] for key in FIELDS} for row in rows]


def number(text: str) -> str:
    """A number without currency, thousands' commas and a full stop."""
    return text.replace(",", "").replace("$", "").rstrip(".")


def score(row: Row, said: str) -> Scores:
    """strict: the first number after ####. flexible: the last number of all."""
    gold = number(MARKED.findall(row["answer"])[0])
    marked, numbers = MARKED.findall(said), NUMBER.findall(said)
    return {
        "strict": float(bool(marked) and number(marked[0]) == gold),
        "flexible": float(bool(numbers) and number(numbers[-1]) == gold),
    }


GSM8K: Final = Benchmark(
    line="worked answers are written; the number after #### counts",
    source="Cobbe et al. 2021; prompts and matching as in lm-eval, its first 5 training rows",
    shots=5,
    layout=LAYOUT,
    metrics=("strict", "flexible"),
    read=read,
    prompt=lambda row: f"Question: {row['question']}\nAnswer:",
    target=lambda row: str(row["answer"]),
    score=score,
    until=("Question:",),
    tokens=256,
)
