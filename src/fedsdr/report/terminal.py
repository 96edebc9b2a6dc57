"""The summary of a run as a table in the terminal."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console

from fedsdr.core.console import Grid, print_grid
from fedsdr.report import benchmarks, judgements

TERMINAL_COLUMNS: Final = {
    "client_facts": "facts",
    "changed_facts": "changed",
    "general": "general",
    "general_kept": "kept",
    "hallucination": "halluc.",
    "inventions": "invent.",
    "refusals": "refusals",
    "length": "length",
    "loss": "loss",
    "personal_client_facts": "own facts",
    "personal_general": "own general",
    "personal_loss": "own loss",
}
WIDE: Final = 120  # characters of a terminal that has room for intervals


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """One row a method, one column a metric ("own": the clients' own models), then the claims and,
    under differential privacy, the privacy loss of the whole run."""
    console = console or Console()
    methods = summary["methods"]
    columns = [c for c in TERMINAL_COLUMNS if any(c in metrics for metrics in methods.values())]
    intervals = console.width >= WIDE
    rows = [
        [name, *(_cell(metrics.get(column), intervals) for column in columns)]
        for name, metrics in methods.items()
    ]
    print_grid(Grid(("method", *(TERMINAL_COLUMNS[column] for column in columns)), rows), console)
    for claim in summary["claims"]:
        console.print(
            f"{claim['verdict'].upper()}: {claim['claim']}. {claim['words']}",
            highlight=False,
            markup=False,
        )
    if privacy := summary.get("privacy"):
        console.print(privacy["words"], highlight=False, markup=False)


def print_judging(judging: Mapping[str, Any], console: Console | None = None) -> None:
    """One judging of judge.json: the result over all questions and by category, and warnings."""
    console = console or Console()
    view = judgements.judging_view(judging)
    heads = ("questions", "number", view.measure, "95 % interval")
    rows = [(row.label, row.n, row.value, row.span) for row in view.rows]
    print_grid(Grid(heads, rows, title=view.title), console)
    for words in (*view.facts, *view.warnings):
        console.print(words, highlight=False, markup=False)


def _cell(estimate: Mapping[str, Any] | None, interval: bool) -> str:
    if estimate is None:
        return ""
    text = f"{estimate['mean']:.1f}" if abs(estimate["mean"]) >= 10 else f"{estimate['mean']:.3g}"
    if estimate["low"] is None or not interval:
        return text
    return f"{text} ± {estimate['mean'] - estimate['low']:.1f}"


def print_benchmarks(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Scores in percent with standard errors, and differences with their intervals in points."""
    console = console or Console()
    heads = ("model", "task", "metric", "questions", "score", "to the base model")
    rows = []
    for row in summary["results"]:
        for metric, found in row["metrics"].items():
            error = "" if found["stderr"] is None else f" ± {100 * found['stderr']:.1f}"
            rows.append(
                [
                    row["model"], row["task"], metric, str(row["questions"]),
                    f"{100 * found['mean']:.1f}{error}", _points(row.get("to_base"), metric),
                ]
            )  # fmt: skip
    print_grid(Grid(heads, rows, wraps=True), console)
    for note in benchmarks.shortened_prompts(summary["results"]):
        console.print(note, highlight=False, markup=False)
    against = summary.get("against", {"results": []})
    for row in against["results"]:
        for metric in row["differences"]:
            console.print(
                f"{row['model']}, {row['task']} {metric}, against {against['name']}: "
                f"{_points(row['differences'], metric)}",
                highlight=False, markup=False,
            )  # fmt: skip


def _points(differences: Mapping[str, Any] | str | None, metric: str) -> str:
    """A paired difference in percentage points, with its interval."""
    if differences is None or isinstance(differences, str):
        return differences or ""
    found = differences[metric]
    text = f"{100 * found['mean']:+.1f}"
    if found["low"] is None:
        return text
    return f"{text} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
