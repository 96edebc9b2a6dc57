"""BIG-bench hard (Suzgun et al. 2022, arXiv 2210.09261): 27 tasks, answers written, 3 shots."""

import json
from pathlib import Path
from typing import Final

from fedsdr.errors import UserError
from fedsdr.evaluate.benchmarks.folder import checked, enough, find
from fedsdr.evaluate.benchmarks.subject import Benchmark, Row, Scores, Subject

LAYOUT: Final = 'bbh/TASK.json, each {"examples": [{"input": ..., "target": ...}, ...]}'


def read(data: Path, shots: int) -> list[Subject]:
    """The first `shots` examples of a task are its shots, and are not asked."""
    paths = sorted(find(data, ["bbh"], LAYOUT).glob("*.json"))
    if not paths:
        raise UserError(f"{data / 'bbh'} holds no *.json: expected {LAYOUT}")
    return [_subject(path, shots) for path in paths]


def _subject(path: Path, shots: int) -> Subject:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    rows = content.get("examples") if isinstance(content, dict) else None
    examples = [
        {"input": str(row["input"]), "target": str(row["target"])}
        for row in checked(path, rows, ("input", "target"))
    ]
    return Subject(path.stem, *enough(path, examples, shots))


def score(row: Row, said: str) -> Scores:
    """exact: the first line is the target. prefix: it begins with it, as instruct-eval counts."""
    answer, target = said.strip(), row["target"].strip()
    return {"exact": float(answer == target), "prefix": float(answer.startswith(target))}


BBH: Final = Benchmark(
    line="27 tasks; the first line that is written must be the answer",
    source="Suzgun et al. 2022; prompts as in declare-lab/instruct-eval",
    shots=3,
    layout=LAYOUT,
    metrics=("exact", "prefix"),
    read=read,
    prompt=lambda row: f"{row['input']}\nAnswer:",
    target=lambda row: str(row["target"]),
    score=score,
)
