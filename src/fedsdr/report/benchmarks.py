"""Results of `fedsdr eval`: scores with standard errors, and paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsdr.report import labels, text
from fedsdr.report.load import BenchmarkScores
from fedsdr.report.tables import TableCell


@dataclass(frozen=True)
class ScoreRow:
    """A model's score on one metric of a benchmark."""

    model: str
    benchmark: str
    metric: str
    questions: str
    score: TableCell
    difference: TableCell


@dataclass(frozen=True)
class BenchmarkTable:
    """notes: which prompts were made shorter. against: the same models of another run."""

    rows: tuple[ScoreRow, ...]
    notes: tuple[str, ...]
    interval: str
    other: str
    against: tuple[ScoreRow, ...]


def benchmark_table(found: BenchmarkScores) -> BenchmarkTable | None:
    """None where nothing was evaluated."""
    if not found.results:
        return None
    return BenchmarkTable(
        tuple(row for each in found.results for row in _rows(each, each.get("to_base"))),
        tuple(shortened_prompts(found.results)),
        found.interval,
        found.other,
        tuple(
            ScoreRow(
                each["model"], _name(each["task"]), metric, "", TableCell(""), _points(estimate)
            )
            for each in found.against
            for metric, estimate in each["differences"].items()
        ),
    )


def shortened_prompts(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on shortened prompts; models with equal counts share one."""
    models: dict[str, list[str]] = {}
    for row in results:
        count, shots, words = row["questions"], row["settings"]["shots"], []
        if fewer := row["fewer_shots"]:
            words.append(f"{fewer} of {count} prompts hold fewer than {shots} shots, to fit")
        if cut := row["cut"]:
            words.append(
                f"{cut} of {count} questions are too long even so and lose their beginning"
            )
        if words:
            models.setdefault(f"{row['task']}: {'; '.join(words)}", []).append(row["model"])
    return [f"{words} ({', '.join(names)})." for words, names in models.items()]


def _rows(found: Mapping[str, Any], to_base: Any) -> list[ScoreRow]:
    return [
        ScoreRow(
            found["model"],
            _name(found["task"]),
            metric,
            text.format_fixed(found["questions"], 0),
            TableCell(text.format_fixed(100 * score["mean"]), _error(score["stderr"])),
            _points(to_base[metric] if isinstance(to_base, Mapping) else None),
        )
        for metric, score in found["metrics"].items()
    ]


def _name(task: str) -> str:
    return labels.BENCHMARK_LABELS.get(task, task)


def _error(error: float | None) -> str:
    return "" if error is None else f"\N{PLUS-MINUS SIGN} {text.format_fixed(100 * error)}"


def _points(estimate: Mapping[str, Any] | None) -> TableCell:
    """A difference in percentage points; below it its interval."""
    if estimate is None:
        return TableCell(text.EN_DASH)
    low, high = estimate["low"], estimate["high"]
    span = "" if low is None else text.format_span(100 * low, 100 * high)
    return TableCell(text.format_signed(100 * estimate["mean"]), span)
