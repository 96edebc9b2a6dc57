"""Reading the folder of a run or comparison for its report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsdr.core.errors import UserError
from fedsdr.core.files import read_json, read_json_lines
from fedsdr.core.layout import (
    AGAINST_FILE,
    BENCHMARK_SUMMARY,
    BENCHMARKS_FOLDER,
    DISTILLATION_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    NOTICES_FILE,
    PARTITION_FILE,
    PERSONAL_FILE,
    RECIPE_FILE,
    SUMMARY_FILE,
)
from fedsdr.report import judgements, labels
from fedsdr.report.unfinished import interim_summary


@dataclass(frozen=True)
class ScoreEstimate:
    """Mean over n runs; low and high bound its 95 % interval, where n allows one."""

    mean: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class RoundRow:
    """What one round measured: `train` from clients' training, `eval` on held-out questions."""

    index: int
    clients: tuple[str, ...]
    train: Mapping[str, float]
    eval: Mapping[str, float]


@dataclass(frozen=True)
class SeedRun:
    """One method with one seed; personal: client -> metrics of its own model on its own data."""

    rounds: tuple[RoundRow, ...]
    distillation: Mapping[str, Any]
    personal: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class MethodRuns:
    name: str
    scores: Mapping[str, ScoreEstimate]
    runs: tuple[SeedRun, ...]


@dataclass(frozen=True)
class ClaimRow:
    claim: str
    verdict: str
    words: str


@dataclass(frozen=True)
class BenchmarkScores:
    """What `fedsdr eval` wrote; other: the run that `against` compares with."""

    results: tuple[Mapping[str, Any], ...] = ()
    interval: str = ""
    other: str = ""
    against: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Material:
    """All that a report shows. Methods are in the order of `labels.METHODS`.

    seconds: of the process that finished the work, which another had begun if it was resumed.
    privacy: the privacy loss of a client by all methods and seeds together, in words.
    pending: what is still to come, in words; "" of what is finished.
    """

    kind: str
    name: str
    own: str
    seeds: tuple[int, ...]
    seconds: float | None
    resumed: bool
    methods: tuple[MethodRuns, ...]
    claims: tuple[ClaimRow, ...]
    partition: tuple[Mapping[str, Any], ...]
    recipe: str
    environment: Mapping[str, Any]
    judgings: tuple[Mapping[str, Any], ...] = ()
    benchmarks: BenchmarkScores = BenchmarkScores()
    notices: tuple[Mapping[str, Any], ...] = ()
    privacy: str = ""
    pending: str = ""


def load_run(folder: Path) -> Material:
    """Read `folder`; only summary.json must be there, or, of what is not finished, recipe.toml.
    Raises `UserError` where neither is, or one is unreadable."""
    path = folder / SUMMARY_FILE
    if not path.exists():
        if not (folder / RECIPE_FILE).exists():
            raise UserError(
                f"{folder} has no {SUMMARY_FILE} and no {RECIPE_FILE}: give the folder of a run or "
                "comparison"
            )
        return load_material(folder, interim_summary(folder))
    summary = read_json(path)
    if not isinstance(summary, Mapping):
        raise UserError(f"{path} must hold a JSON object, not {type(summary).__name__}")
    return load_material(folder, summary)


def load_material(folder: Path, summary: Mapping[str, Any]) -> Material:
    """What a summary and the files of its folder say. Raises `UserError` for unreadable ones."""
    runs = summary.get("runs") or {}
    places = _places(folder, runs, str(summary.get("own", "")))
    scores = summary.get("methods") or {}
    return Material(
        kind=str(summary.get("kind", "run")),
        name=str(summary.get("name", "")),
        own=str(summary.get("own", "")),
        seeds=tuple(summary.get("seeds") or ()),
        seconds=finite_number(summary.get("seconds")),
        resumed=bool(summary.get("resumed")),
        methods=tuple(
            MethodRuns(name, _scores(scores.get(name) or {}), _runs(folder, runs.get(name) or ()))
            for name in labels.ordered_names({*scores, *runs}, labels.METHOD_LABELS)
        ),
        claims=tuple(map(_claim, summary.get("claims") or ())),
        partition=tuple(_first_json(places, PARTITION_FILE) or ()),
        recipe=_first_text(places, RECIPE_FILE),
        environment=_first_json(places, ENVIRONMENT_FILE) or {},
        judgings=judgements.load_judgings(folder),
        benchmarks=_benchmarks(folder / BENCHMARKS_FOLDER),
        notices=tuple(_first_json(places, NOTICES_FILE) or ()),
        privacy=_privacy(summary.get("privacy")),
        pending=str(summary.get("pending", "")),
    )


def _privacy(found: Any) -> str:
    return str(found.get("words", "")) if isinstance(found, Mapping) else ""


def _benchmarks(folder: Path) -> BenchmarkScores:
    found, against = (
        read_json(path) if (path := folder / name).exists() else {}
        for name in (BENCHMARK_SUMMARY, AGAINST_FILE)
    )
    return BenchmarkScores(
        tuple(found.get("results") or ()),
        str(found.get("interval", "")),
        str(against.get("name", "")),
        tuple(against.get("results") or ()),
    )


def _places(folder: Path, runs: Mapping[str, Any], own: str) -> list[Path]:
    """Where files that describe the whole may lie: the folder, then the runs, own method first."""
    names = sorted(runs, key=lambda name: name != own)
    return [folder, *(folder / place for name in names for place in runs[name] or ())]


def _first_json(places: list[Path], name: str) -> Any:
    found = [place / name for place in places if (place / name).exists()]
    return read_json(found[0]) if found else None


def _first_text(places: list[Path], name: str) -> str:
    found = [place / name for place in places if (place / name).exists()]
    return found[0].read_text(encoding="utf-8", errors="replace") if found else ""


def _claim(row: Mapping[str, Any]) -> ClaimRow:
    verdict = str(row.get("verdict", ""))
    return ClaimRow(
        str(row.get("claim", "")),
        verdict if verdict in labels.VERDICTS else "open",
        str(row.get("words", "")),
    )


def _scores(rows: Mapping[str, Any]) -> dict[str, ScoreEstimate]:
    """Metrics without a finite mean are left out."""
    scores = {}
    for name, row in rows.items():
        mean = finite_number(row.get("mean")) if isinstance(row, Mapping) else None
        if mean is not None:
            n = int(row.get("n") or 1)
            scores[name] = ScoreEstimate(
                mean, n, finite_number(row.get("low")), finite_number(row.get("high"))
            )
    return scores


def _runs(folder: Path, places: Any) -> tuple[SeedRun, ...]:
    return tuple(_run(folder / place) for place in places)


def _run(folder: Path) -> SeedRun:
    path = folder / DISTILLATION_FILE
    distillation = read_json(path) if path.exists() else {}
    return SeedRun(_rounds(folder / METRICS_FILE), distillation, _personal(folder / PERSONAL_FILE))


def _personal(path: Path) -> dict[str, dict[str, float]]:
    """Clients without a finite metric are left out."""
    rows = read_json(path) if path.exists() else {}
    if not isinstance(rows, Mapping):
        raise UserError(f"{path} must hold a JSON object, not {type(rows).__name__}")
    found = {str(client): _numbers(row) for client, row in rows.items()}
    return {client: row for client, row in found.items() if row}


def _rounds(path: Path) -> tuple[RoundRow, ...]:
    """Rounds in order; what a resumed run wrote again replaces what it wrote before."""
    try:
        rows = read_json_lines(path)
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    rounds: dict[int, RoundRow] = {}
    for row in rows:
        index = int(row["round"])
        old = rounds.get(index, RoundRow(index, (), {}, {}))
        rounds[index] = RoundRow(
            index,
            tuple(map(str, row.get("clients") or old.clients)),
            {**old.train, **_numbers(row.get("train"))},
            {**old.eval, **_numbers(row.get("eval"))},
        )
    return tuple(rounds[index] for index in sorted(rounds))


def _numbers(row: Any) -> dict[str, float]:
    found = {name: finite_number(value) for name, value in (row or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def finite_number(value: Any) -> float | None:
    """The value as a finite float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
