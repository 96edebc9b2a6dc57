"""What finished cells on pretrained models say, beyond the metrics of any run."""

from collections.abc import Mapping
from typing import Any, Final

from experiments.measure import EVIDENCE_FILE
from experiments.plan import Cell
from experiments.results import Results
from fedsdr.core import files
from fedsdr.core.statistics import Estimate, paired_difference

# Where clients have no models of their own, these are the same of the global model.
SHARED_METRICS: Final = ("client_facts", "loss")


class RealResults(Results):
    """Where a method gives its clients no models of their own, theirs is the global one."""

    def metrics(self, cell: Cell, seed: int) -> dict[str, float]:
        found = super().metrics(cell, seed)
        own = {
            f"personal_{name}": value
            for name, value in found.items()
            if name.partition("/")[0] in SHARED_METRICS
        }
        return {**own, **found, **self._extra(cell, seed, "scores")}

    def model(self, cell: Cell, seed: int) -> Mapping[str, object]:
        """What is known of the base model; {} where a cell has no global one."""
        return self._extra(cell, seed, "model")

    def texts(self, cell: Cell, measure: str) -> tuple[list[float], list[float]]:
        """A measure of `experiments.paired` before and after rewriting, a number for each seed."""
        found = [self._extra(cell, seed, "texts")[measure] for seed in self.done(cell)]
        return [before for before, _ in found], [after for _, after in found]

    def texts_difference(self, cell: Cell, measure: str) -> Estimate | None:
        """After minus before."""
        before, after = self.texts(cell, measure)
        return paired_difference(after, before) if before else None

    def _extra(self, cell: Cell, seed: int, part: str) -> dict[str, Any]:
        found = files.read_json(self.folder(cell, seed) / EVIDENCE_FILE)
        return dict(found.get(part, {}))
