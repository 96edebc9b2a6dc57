"""DROP (Dua et al. 2019, arXiv 1903.00161): reading with reckoning, answers written, 3 shots."""

from pathlib import Path
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.evaluate.benchmarks.folder import find_file, read_lines, split_shots
from fedsdr.evaluate.benchmarks.subject import Benchmark, BenchmarkRow, Scores, Subject

DROP_FILES: Final = ("drop_v0_dev.jsonl.gz", "drop_v0_dev.jsonl", "drop/dev.jsonl")
DROP_FIELDS: Final = ("context", "ref_text")
DROP_LAYOUT: Final = (
    "drop_v0_dev.jsonl.gz (or .jsonl, or drop/dev.jsonl) with the fields context "
    '("Passage: ... Question: ... Answer:") and ref_text (right answers apart by "|")'
)


def read_drop(data: Path, shots: int) -> list[Subject]:
    """The first `shots` rows are the shots; questions on their passages are not asked."""
    path = find_file(data, DROP_FILES, DROP_LAYOUT)
    examples, rest = split_shots(path, _rows(path), shots)
    seen = {_passage(row) for row in examples}
    questions = [row for row in rest if _passage(row) not in seen]
    if not questions:
        raise UserError(f"{path}: every row is on a passage of its {shots} shots: add others")
    return [Subject("drop", examples, questions)]


def _rows(path: Path) -> list[BenchmarkRow]:
    rows: list[BenchmarkRow] = [
        {key: str(row[key]) for key in DROP_FIELDS} for row in read_lines(path, DROP_FIELDS)
    ]
    for number, row in enumerate(rows, start=1):
        if not gold_answers(row):
            raise UserError(
                f"{path}, row {number}: ref_text = {row['ref_text']!r} holds no right answer"
            )
    return rows


def _passage(row: BenchmarkRow) -> str:
    return str(row["context"].split("\nQuestion:")[0])


def gold_answers(row: BenchmarkRow) -> list[str]:
    """The right answers of a row, of which the first is the target."""
    return [gold.strip() for gold in row["ref_text"].split("|") if gold.strip()]


def score_drop(row: BenchmarkRow, said: str) -> Scores:
    """The official exact match and F1 (numbers must agree), against the best of the answers."""
    from lm_eval.tasks.drop.utils import get_metrics

    pairs = [get_metrics(said.strip(), gold) for gold in gold_answers(row)]
    exact, f1 = (max(column) for column in zip(*pairs, strict=True))
    return {"f1": float(f1), "exact": float(exact)}


DROP: Final = Benchmark(
    line="an answer is written; the official F1 and exact match",
    source="Dua et al. 2019; the metric is that of lm-eval's DROP",
    shots=3,
    layout=DROP_LAYOUT,
    metrics=("f1", "exact"),
    read=read_drop,
    prompt=lambda row: str(row["context"]),
    target=lambda row: gold_answers(row)[0],
    score=score_drop,
)
