"""BIG-bench hard (Suzgun et al. 2022, arXiv 2210.09261): 27 tasks, answers written, 3 shots."""

import json
from pathlib import Path
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.evaluate.benchmarks.folder import check_rows, find_file, split_shots
from fedsdr.evaluate.benchmarks.subject import Benchmark, BenchmarkRow, Scores, Subject

BBH_LAYOUT: Final = 'bbh/TASK.json, each {"examples": [{"input": ..., "target": ...}, ...]}'


def read_bbh(data: Path, shots: int) -> list[Subject]:
    """The first `shots` examples of a task are its shots, and are not asked."""
    paths = sorted(find_file(data, ["bbh"], BBH_LAYOUT).glob("*.json"))
    if not paths:
        raise UserError(f"{data / 'bbh'} holds no *.json: expected {BBH_LAYOUT}")
    return [_subject(path, shots) for path in paths]


def _subject(path: Path, shots: int) -> Subject:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    rows = content.get("examples") if isinstance(content, dict) else None
    examples = [
        {"input": str(row["input"]), "target": str(row["target"])}
        for row in check_rows(path, rows, ("input", "target"))
    ]
    return Subject(path.stem, *split_shots(path, examples, shots))


def score_bbh(row: BenchmarkRow, said: str) -> Scores:
    """exact: the first line is the target. prefix: it begins with it, as instruct-eval counts."""
    answer, target = said.strip(), row["target"].strip()
    return {"exact": float(answer == target), "prefix": float(answer.startswith(target))}


BBH: Final = Benchmark(
    line="27 tasks; the first line that is written must be the answer",
    source="Suzgun et al. 2022; prompts as in declare-lab/instruct-eval",
    shots=3,
    layout=BBH_LAYOUT,
    metrics=("exact", "prefix"),
    read=read_bbh,
    prompt=lambda row: f"{row['input']}\nAnswer:",
    target=lambda row: str(row["target"]),
    score=score_bbh,
)
