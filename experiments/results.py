"""What finished cells say: metrics by seed, estimates, paired differences, curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from experiments.measure import EVIDENCE_FILE
from experiments.plan import Cell
from experiments.runner import cell_folder
from fedsdr.core import files
from fedsdr.core.layout import DISTILLATION_FILE, METRICS_FILE, PERSONAL_FILE, RESULT_FILE
from fedsdr.core.statistics import Estimate, paired_difference, t_interval
from fedsdr.evaluate.equal_facts import compare_at_equal_facts

EXTRA: Final = ("response_loss", "gradients_first", "gradients_last", "transfer_gap")


@dataclass(frozen=True)
class Results:
    """The finished cells in a folder. Only seeds count for which a cell is complete."""

    out: Path
    seeds: Sequence[int]

    def folder(self, cell: Cell, seed: int) -> Path:
        return cell_folder(self.out, cell, seed)

    def done(self, *cells: Cell) -> list[int]:
        """The seeds for which all of these cells are complete."""
        return [
            seed
            for seed in self.seeds
            if all((self.folder(cell, seed) / EVIDENCE_FILE).exists() for cell in cells)
        ]

    def metrics(self, cell: Cell, seed: int) -> dict[str, float]:
        """Final metrics of the global and the personal models, and what evidence measured."""
        folder = self.folder(cell, seed)
        found = dict(files.read_json(folder / RESULT_FILE))
        extra = files.read_json(folder / EVIDENCE_FILE)
        return found | {name: extra[name] for name in EXTRA if name in extra}

    def values(self, cell: Cell, metric: str, seeds: Sequence[int]) -> list[float]:
        return [self.metrics(cell, seed)[metric] for seed in seeds]

    def has(self, cell: Cell, metric: str) -> bool:
        seeds = self.done(cell)
        return bool(seeds) and all(metric in self.metrics(cell, seed) for seed in seeds)

    def estimate(self, cell: Cell, metric: str) -> Estimate | None:
        if not self.has(cell, metric):
            return None
        return t_interval(self.values(cell, metric, self.done(cell)))

    def difference(self, a: Cell, b: Cell, metric: str) -> Estimate | None:
        """a - b over the seeds that both have."""
        seeds = self.done(a, b)
        if not seeds or not (self.has(a, metric) and self.has(b, metric)):
            return None
        return paired_difference(self.values(a, metric, seeds), self.values(b, metric, seeds))

    def rounds(self, cell: Cell, seed: int) -> list[dict[str, Any]]:
        return files.read_json_lines(self.folder(cell, seed) / METRICS_FILE)

    def curve(self, cell: Cell, seed: int) -> list[dict[str, float]]:
        """The global model's evaluations along training."""
        return [row["eval"] for row in self.rounds(cell, seed) if row.get("eval")]

    def at_equal_facts(self, a: Cell, b: Cell) -> tuple[Estimate, float] | None:
        """General knowledge that a keeps more than b where both know equally many client facts,
        and how many those are; None where a seed has learnt nothing, so that there is nothing to
        compare but the base model with itself."""
        seeds = self.done(a, b)
        if not seeds:
            return None
        found = compare_at_equal_facts(*([self.curve(x, seed) for seed in seeds] for x in (a, b)))
        return (found.difference, found.facts) if found.learnt else None

    def answers(self, cell: Cell, seed: int) -> list[tuple[bool, int]]:
        """(true, words) of the global model's answer to every held-out question."""
        found = files.read_json(self.folder(cell, seed) / EVIDENCE_FILE)["answers"]
        return [(bool(true), int(words)) for true, words in found]

    def transfer(self, cell: Cell, seed: int) -> Mapping[str, Mapping[str, float]]:
        """Clients' own models on each other's records (`diagnosis/transfer.py`), if measured."""
        found = files.read_json(self.folder(cell, seed) / EVIDENCE_FILE)
        return dict(found.get("transfer", {}))

    def clients(self, cell: Cell, seed: int) -> Mapping[str, Mapping[str, float]]:
        """Each client's own model, judged on its own records."""
        return dict(files.read_json(self.folder(cell, seed) / PERSONAL_FILE))

    def distillation(self, cell: Cell, seed: int) -> Mapping[str, Any]:
        return dict(files.read_json(self.folder(cell, seed) / DISTILLATION_FILE))

    def training(self, cell: Cell, seed: int, metric: str) -> list[float]:
        """A training metric round by round."""
        rows = self.rounds(cell, seed)[1:]
        return [row["train"][metric] for row in rows if metric in row["train"]]


def win_rate(a: Sequence[tuple[bool, int]], b: Sequence[tuple[bool, int]]) -> float:
    """Share of the questions on which exactly one model is right that `a` gets right, in percent;
    50 where they never differ."""
    won = sum(x and not y for (x, _), (y, _) in zip(a, b, strict=True))
    lost = sum(y and not x for (x, _), (y, _) in zip(a, b, strict=True))
    return 100 * won / (won + lost) if won + lost else 50.0
