"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): school mathematics, worked answers, 5 shots."""

import re
from pathlib import Path
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.evaluate.benchmarks.folder import check_texts, find_file, leading_shots, read_lines
from fedsdr.evaluate.benchmarks.subject import Benchmark, BenchmarkRow, Scores, Subject

GSM8K_FIELDS: Final = ("question", "answer")
GSM8K_LAYOUT: Final = (
    "gsm8k/train.jsonl and gsm8k/test.jsonl (or gsm8k_train.jsonl and gsm8k_test.jsonl) with the "
    "fields question and answer (its result after ####)"
)
MARKED: Final = re.compile(r"#### (-?[0-9.,]+)")
GSM8K_NUMBER: Final = re.compile(r"-?\$?[0-9][0-9.,]*")


def read_gsm8k(data: Path, shots: int) -> list[Subject]:
    """The first `shots` rows of the training file are the shots."""
    train, test = (
        find_file(data, [f"gsm8k/{part}.jsonl", f"gsm8k_{part}.jsonl"], GSM8K_LAYOUT)
        for part in ("train", "test")
    )
    return [Subject("gsm8k", leading_shots(train, _rows(train), shots), _rows(test))]


def _rows(path: Path) -> list[BenchmarkRow]:
    rows = read_lines(path, GSM8K_FIELDS)
    for number, row in enumerate(rows, start=1):
        check_texts(path, number, row, GSM8K_FIELDS)
        if not MARKED.search(row["answer"]):
            raise UserError(f"{path}, row {number}: the answer has no result after ####")
    return [{key: row[key] for key in GSM8K_FIELDS} for row in rows]


def parse_number(text: str) -> str:
    """A number without currency, thousands' commas and a full stop."""
    return text.replace(",", "").replace("$", "").rstrip(".")


def score_gsm8k(row: BenchmarkRow, said: str) -> Scores:
    """strict: the first number after ####. flexible: the last number of all."""
    gold = parse_number(MARKED.findall(row["answer"])[0])
    marked, numbers = MARKED.findall(said), GSM8K_NUMBER.findall(said)
    return {
        "strict": float(bool(marked) and parse_number(marked[0]) == gold),
        "flexible": float(bool(numbers) and parse_number(numbers[-1]) == gold),
    }


GSM8K: Final = Benchmark(
    line="worked answers are written; the number after #### counts",
    source="Cobbe et al. 2021; prompts and matching as in lm-eval, its first 5 training rows",
    shots=5,
    layout=GSM8K_LAYOUT,
    metrics=("strict", "flexible"),
    read=read_gsm8k,
    prompt=lambda row: f"Question: {row['question']}\nAnswer:",
    target=lambda row: str(row["answer"]),
    score=score_gsm8k,
    until=("Question:",),
    tokens=256,
)
