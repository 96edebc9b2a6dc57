"""DROP (Dua et al. 2019, arXiv 1903.00161): reading with reckoning, answers written, 3 shots."""

from pathlib import Path
from typing import Final

from fedsdr.errors import UserError
from fedsdr.evaluate.benchmarks.folder import enough, find, read_lines
from fedsdr.evaluate.benchmarks.subject import Benchmark, Row, Scores, Subject

FILES: Final = ("drop_v0_dev.jsonl.gz", "drop_v0_dev.jsonl", "drop/dev.jsonl")
FIELDS: Final = ("context", "ref_text")
LAYOUT: Final = (
    "drop_v0_dev.jsonl.gz (or .jsonl, or drop/dev.jsonl) with the fields context "
    '("Passage: ... Question: ... Answer:") and ref_text (right answers apart by "|")'
)


def read(data: Path, shots: int) -> list[Subject]:
    """The first `shots` rows are the shots; questions on their passages are not asked."""
    path = find(data, FILES, LAYOUT)
    examples, rest = enough(path, _rows(path), shots)
    seen = {_passage(row) for row in examples}
    questions = [row for row in rest if _passage(row) not in seen]
    if not questions:
        raise UserError(f"{path}: every row is on a passage of its {shots} shots: add others")
    return [Subject("drop", examples, questions)]


def _rows(path: Path) -> list[Row]:
    rows: list[Row] = [{key: str(row[key]) for key in FIELDS} for row in read_lines(path, FIELDS)]
    for number, row in enumerate(rows, start=1):
        if not golds(row):
            raise UserError(
                f"{path}, row {number}: ref_text = {row['ref_text']!r} holds no right answer"
            )
    return rows


def _passage(row: Row) -> str:
    return str(row["context"].split("\nQuestion:")[0])


def golds(row: Row) -> list[str]:
    return [gold.strip() for gold in row["ref_text"].split("|") if gold.strip()]


def score(row: Row, said: str) -> Scores:
    """The official exact match and F1 (numbers must agree), against the best of the answers."""
    from lm_eval.tasks.drop.utils import get_metrics

    pairs = [get_metrics(said.strip(), gold) for gold in golds(row)]
    exact, f1 = (max(column) for column in zip(*pairs, strict=True))
    return {"f1": float(f1), "exact": float(exact)}


DROP: Final = Benchmark(
    line="an answer is written; the official F1 and exact match",
    source="Dua et al. 2019; the metric is that of lm-eval's DROP",
    shots=3,
    layout=LAYOUT,
    metrics=("f1", "exact"),
    read=read,
    prompt=lambda row: str(row["context"]),
    target=lambda row: golds(row)[0],
    score=score,
)
