"""The cells to run, each one method in one world, grouped by the experiments that need them.

Each experiment names its cells; cells of equal content are run once for all experiments.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final

from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.methods import named_recipe
from fedsdr.recipe.sections.recipe import Recipe

Changes = Mapping[str, Any]

BOOSTED: Final = (
    "fedavg", "fedavgm", "fedprox", "fedyogi", "fedadam", "fedadagrad", "scaffold",
)  # fmt: skip
MAIN: Final = ("fedavg", "fedsd", "fedsdr")
STUBBORNNESS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
ALPHAS: Final = (0.05, 0.5, 5.0, 100.0)
CLIENTS: Final = (2, 10, 20)
PARTICIPATION: Final = (0.1, 0.25, 0.5)  # of twenty clients; all of them is among `CLIENTS`
STAGES: Final = (2, 5)  # rounds after which a run is evaluated, besides the last
LITERAL: Final[Changes] = {
    "local.smoothing_context": "joint",
    "local.smoothing_state": "keep",
    "local.rectify_alone": 0.0,
}
SHARED_S: Final[Changes] = {
    "federation.targets": "two_shared_streams",
    "local.smoothing_state": "keep",
}
CONSOLIDATED: Final[Changes] = {"local.consolidate_steps": 10, "local.consolidate_lr": 3e-3}


@dataclass(frozen=True)
class Cell:
    """A method (a name of `fedsdr.recipe.methods`) with keys changed.

    world: keys that all methods share. base: the file of what all cells have in common.
    """

    method: str
    changes: Changes = field(default_factory=dict)
    world: Changes = field(default_factory=dict)
    base: str = "evidence.toml"

    def recipe(self, seed: int) -> Recipe:
        common = override_recipe(base_recipe(self.base), {**self.world, "seed": seed})
        return override_recipe(named_recipe(self.method, common), self.changes)

    @cached_property
    def key(self) -> str:
        """The name of its folder: the method, and a digest of all that is not a default."""
        tables = portable_recipe(self.recipe(0)).model_dump(mode="json", exclude_defaults=True)
        tables.pop("method", None)  # a name for keys that are spelled out
        text = json.dumps(tables)
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        return f"{self.method.replace('+', '_')}-{digest}"


@cache
def base_recipe(name: str = "evidence.toml") -> Recipe:
    """What all cells have in common, from a file of this folder."""
    with resources.as_file(resources.files("experiments") / name) as path:
        return load_recipe(path)


def portable_recipe(recipe: Recipe) -> Recipe:
    """The recipe with files by their names and the folder of benchmarks as ".", the same on every
    machine."""
    sources = [
        {**source.model_dump(), "path": Path(source.path).name} for source in recipe.data.sources
    ]
    model = Path(recipe.model.path)
    changes: dict[str, Any] = {"data.sources": sources}
    if model.is_absolute():
        changes["model.path"] = model.name
    if recipe.evaluate.benchmark_data is not None:
        changes["evaluate.benchmark_data"] = "."
    return override_recipe(recipe, changes)


Cells = dict[str, Cell]  # its name in tables and figures -> the cell


def boosters_cells() -> Cells:
    """1. Every algorithm on raw and on rewritten data."""
    raw = {name: Cell(name) for name in BOOSTED}
    return raw | {f"fedsd+{name}": Cell(_on_rewrites(name)) for name in BOOSTED}


def _on_rewrites(algorithm: str) -> str:
    return "fedsd" if algorithm == "fedavg" else f"fedsd+{algorithm}"


def flattening_cells() -> Cells:
    """2. FedAvg and FedSD along training, and what local training on either gives."""
    cells = {"base": Cell("base"), "local": Cell("local"), "fedsd+local": Cell("fedsd+local")}
    for name in ("fedavg", "fedsd"):
        for rounds in STAGES:
            cells[f"{name} {rounds}"] = Cell(name, {"federation.rounds": rounds})
        cells[f"{name} 10"] = Cell(name)
    return cells


def paradox_cells() -> Cells:
    """3. Stubbornness from 0 to 1."""
    return {
        f"{name} {level}": Cell(name, world={"lab.stubbornness": level})
        for level in STUBBORNNESS
        for name in (*MAIN, "fedsd_verified")
    }


def cells_with_texts() -> list[Cell]:
    """Cells whose rewrites (and not only metrics) a chapter reads."""
    return [
        cell
        for cell in (*flattening_cells().values(), *paradox_cells().values())
        if cell.method == "fedsd"
    ]


def rivals_cells() -> Cells:
    """4a. FedSDR against the others, and at equal compute."""
    names = (*MAIN, "fedsd_verified", "mixed", "feddpa", "ditto", "local", "flexlora", "fedex")
    longer = {"local.rectify_steps": 20}
    more = {"fedsdr+fedex": Cell("fedsdr+fedex"), "FedAvg, 20 steps": Cell("fedavg", longer)}
    return {name: Cell(name) for name in names} | more


def pareto_cells() -> Cells:
    """4c. Personal models along training: the same runs, stopped earlier."""
    return {
        f"{name} {rounds}": Cell(name, {"federation.rounds": rounds})
        for name in (*MAIN, "fedsd_verified", "feddpa", "ditto")
        for rounds in (*STAGES, 10)
    }


def ablations_cells() -> Cells:
    """4b. FedSDR with one choice changed."""
    half = {"local.rectify_steps": 5, "local.smooth_steps": 5}
    swapped = {"local.smoothing_targets": "raw", "local.rectify_targets": "distilled"}
    verified = {"distill.checks": ["empty", "truncated", "repetition", "meta_talk", "answer"]}
    never = {"local.rectify_alone": 0.0}
    changed: dict[str, Changes] = {
        "fedsdr": {},
        "as the equations say": LITERAL,
        "joint smoothing": {"local.smoothing_context": "joint"},
        "S kept": {"local.smoothing_state": "keep"},
        "S decayed": {"local.smoothing_state": "decay"},
        "R alone 0": never,
        "R alone 0.25": {"local.rectify_alone": 0.25},
        "R alone 0.75": {"local.rectify_alone": 0.75},
        "R alone 1 (FedAvg's R)": {"local.rectify_alone": 1.0},
        "5 + 5 steps (FedAvg's compute)": half,
        "S 5 steps": {"local.smooth_steps": 5},
        "S 20 steps": {"local.smooth_steps": 20},
        "R 5 steps": {"local.rectify_steps": 5},
        "R 20 steps": {"local.rectify_steps": 20},
        "rectify first": {"local.stage_order": "rectify_first"},
        "data swapped": swapped,
        "R on verified rewrites, S on raw": {**swapped, **verified, "distill.attempts": 4},
        "S on verified rewrites": {**verified, "distill.attempts": 4},
        "literal, S reset": {**LITERAL, "local.smoothing_state": "reset"},
        "literal, R alone 0.5": {**LITERAL, "local.rectify_alone": 0.5},
        "literal, base context": {**LITERAL, "local.smoothing_context": "base"},
        "S aggregated too": {**SHARED_S, "local.smoothing_context": "base"},
        "S aggregated too, literal": {**SHARED_S, **LITERAL},
        "consolidated": CONSOLIDATED,
        "consolidated, R alone 0": {**CONSOLIDATED, **never},
        "consolidated on rewrites, R alone 0": {
            **CONSOLIDATED, **never, "local.consolidate_targets": "distilled",
        },
        "consolidated, S on verified rewrites, R alone 0": {
            **CONSOLIDATED, **never, **verified, "distill.attempts": 4,
        },
    }  # fmt: skip
    cells = {name: Cell("fedsdr", changes) for name, changes in changed.items()}
    split = {"lora.rank": 8, "lora.alpha": 16.0}
    cells["rank 8 + 8 (FedAvg's parameters)"] = Cell("fedsdr", world=split)
    uneven = {"lora.rank": 12, "lora.smoothing_rank": 4, "lora.alpha": 24.0}
    cells["rank 12 + 4 (FedAvg's parameters)"] = Cell("fedsdr", world=uneven)
    other = {"lora.rank": 4, "lora.smoothing_rank": 12, "lora.alpha": 8.0}
    cells["rank 4 + 12 (FedAvg's parameters)"] = Cell("fedsdr", world=other)
    # What is left of FedSDR without one of its streams are other methods, cell for cell.
    cells["R only (FedAvg)"] = Cell("fedavg")
    cells["S only, shared (FedSD)"] = Cell("fedsd")
    cells["S only, at home (local, on rewrites)"] = Cell("fedsd+local")
    shorter = {"distill.prefer": "shorter"}
    cells["FedSD verified, shorter preferred"] = Cell("fedsd_verified", shorter)
    return cells


def heterogeneity_cells() -> Cells:
    """5. Data heterogeneity, number of clients, participation, and late clients."""
    cells: Cells = {}
    for name in MAIN:
        for alpha in ALPHAS:
            cells[f"{name} alpha {alpha:g}"] = Cell(name, world={"lab.alpha": alpha})
        for count in CLIENTS:
            cells[f"{name} clients {count}"] = Cell(name, world={"lab.clients": count})
        some = {"federation.participation": 0.2}
        cells[f"{name} 20 % of 10"] = Cell(name, some, {"lab.clients": 10})
        late = {"federation.late": 0.4, "federation.late_round": 5}
        cells[f"{name} two of five late"] = Cell(name, late)
        never = {"federation.late": 0.4, "federation.late_round": 10}
        cells[f"{name} two of five never"] = Cell(name, never)
        for share in PARTICIPATION:
            part = {"federation.participation": share}
            cells[f"{name} {100 * share:g} % of 20"] = Cell(name, part, {"lab.clients": 20})
        some = {"federation.participation": 0.2}
        cells[f"{name} 20 % of 50"] = Cell(name, some, {"lab.clients": 50})
        unequal = {"lab.clients": 10, "lab.imbalance": 9.0}
        cells[f"{name} unequal"] = Cell(name, world=unequal)
    cells["base"] = Cell("base")
    for name in ("ditto", "local"):  # what else gives a client a model of its own
        cells[f"{name} clients 20"] = Cell(name, world={"lab.clients": 20})
    return cells


EXPERIMENTS: Final = {
    "boosters": boosters_cells,
    "flattening": flattening_cells,
    "rivals": rivals_cells,
    "ablations": ablations_cells,
    "pareto": pareto_cells,
    "paradox": paradox_cells,
    "heterogeneity": heterogeneity_cells,
}
# The cells of --quick: ten minutes for two seeds on two cores.
QUICK: Final = {
    "boosters": ("fedavg", "fedsd+fedavg", "fedyogi", "fedsd+fedyogi"),
    "flattening": ("local", "fedsd+local", "fedavg 2", "fedsd 2", "fedavg 10", "fedsd 10"),
    "paradox": tuple(f"{name} 0.5" for name in (*MAIN, "fedsd_verified")),
    "rivals": (*MAIN, "fedsd_verified", "mixed", "feddpa"),
    "ablations": ("fedsdr", "as the equations say"),
}


def planned_cells(names: Iterable[str], quick: bool = False) -> list[Cell]:
    """The cells of these experiments, each once, in the order of the experiments."""
    cells = [
        cell
        for name in names
        for called, cell in EXPERIMENTS[name]().items()
        if not quick or called in QUICK.get(name, ())
    ]
    return list({cell.key: cell for cell in cells}.values())
