"""Precision and recall of the quality gate's checks on rewrites that were labelled by reading.

    python -m experiments.gate

`labelled_rewrites.jsonl` has rewrites of made-up questions by two instruction models. Each was
labelled by the checks of `fedsdr.distillation.verify` first, and then read; reading corrected the
labels where it disagreed, so that they lean towards the checks in cases of doubt. A label says what
is wrong with a rewrite: the name of a check, or `wrong` where it does not state the gold answer.
"""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedsdr.data.records import Record, Turn
from fedsdr.distillation.checks import Rewrite
from fedsdr.distillation.verify import PLAIN_CHECKS

LABELLED_FILE: Final = Path(__file__).with_name("labelled_rewrites.jsonl")
_ALONE: Final = "no_answer echo meta_talk repetition language invention turns".split()
JUDGED: Final = {
    **{name: (name,) for name in _ALONE},
    "wrong": ("label", "number", "answer"),
}


class Score(NamedTuple):
    """Rewrites that checks refuse, that have the label, and both."""

    refused: int
    labelled: int
    both: int


def labelled_rewrites() -> list[dict[str, Any]]:
    """The rows of the file, in order."""
    lines = LABELLED_FILE.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def check_scores(rows: list[dict[str, Any]]) -> dict[str, Score]:
    """For each label, the score of the checks that are there for it."""
    found = [(_refusals(row), {*row["labels"]}) for row in rows]
    return {
        label: Score(
            sum(not refused.isdisjoint(checks) for refused, _ in found),
            sum(label in labels for _, labels in found),
            sum(label in labels and not refused.isdisjoint(checks) for refused, labels in found),
        )
        for label, checks in JUDGED.items()
    }


def _refusals(row: dict[str, Any]) -> set[str]:
    record = Record((Turn("user", row["prompt"]),), row["response"], answer=row["gold"])
    rewrite = Rewrite(row["rewrite"], row["finished"])
    return {name for name, check in PLAIN_CHECKS.items() if check(record, rewrite)}


def gate_score(rows: list[dict[str, Any]]) -> Score:
    """All checks against any label, of the rewrites that ended within their limit."""
    finished = [(bool(_refusals(row)), bool(row["labels"])) for row in rows if row["finished"]]
    return Score(
        sum(refused for refused, _ in finished),
        sum(labelled for _, labelled in finished),
        sum(refused and labelled for refused, labelled in finished),
    )


def score_table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table of docs/distillation.md."""
    scores = {", ".join(JUDGED[label]): score for label, score in check_scores(rows).items()}
    scores["all of them, of finished rewrites"] = gate_score(rows)
    head = [
        "| checks | labelled | refused | both | precision | recall |",
        "|---|---|---|---|---|---|",
    ]
    lines = [
        f"| {name} | {s.labelled} | {s.refused} | {s.both} | {s.both / max(1, s.refused):.2f} "
        f"| {s.both / max(1, s.labelled):.2f} |"
        for name, s in scores.items()
    ]
    return "\n".join([*head, *lines])


if __name__ == "__main__":
    print(score_table(labelled_rewrites()))
