"""The cells on pretrained models: methods of the English lab, and of real domains."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from experiments.plan import Cell, Cells, Changes, base_recipe
from experiments.runner import Group

ENGLISH_FILE: Final = "real/english.toml"
DOMAINS_FILE: Final = "real/domains.toml"
SWAPPED: Final = "R on verified rewrites, S on raw"
OWN_MODELS: Final[Changes] = {"evaluate.personal": True}  # of clients, where a method has any
# Methods that one process runs, which judges the base model once for them; those that share
# rewrites follow one another.
ENGLISH_GROUPS: Final = (
    ("base", "fedavg", "local", "fedavgm"),
    ("fedsd", "fedsdr", "fedsd_verified", SWAPPED),
    ("fedadam", "fedsd+fedadam", "fedsd+fedavgm"),
)
DOMAINS_GROUPS: Final = (("base", "fedavg"), ("fedsd", "fedsdr", "fedsd_verified"))
GROUPS: Final = {"english": ENGLISH_GROUPS, "domains": DOMAINS_GROUPS}


def english_cells(world: Changes) -> Cells:
    """Methods of the English lab. world: keys that all of them change."""
    swapped = {
        "local.smoothing_targets": "raw",
        "local.rectify_targets": "distilled",
        "distill.checks": [*base_recipe(ENGLISH_FILE).distill.checks, "answer"],
        "distill.attempts": 4,
        **OWN_MODELS,
    }
    changed: dict[str, Changes] = {"local": OWN_MODELS, "fedsdr": OWN_MODELS, SWAPPED: swapped}
    return {
        name: Cell(
            "fedsdr" if name == SWAPPED else name, changed.get(name, {}), world, ENGLISH_FILE
        )
        for name in chain.from_iterable(ENGLISH_GROUPS)
    }


def domains_cells(world: Changes) -> Cells:
    """Methods on files of five domains. world: keys that all of them change."""
    return {
        name: Cell(name, OWN_MODELS if name == "fedsdr" else {}, world, DOMAINS_FILE)
        for name in chain.from_iterable(DOMAINS_GROUPS)
    }


EXPERIMENTS: Final = {"english": english_cells, "domains": domains_cells}


def planned_cells(names: Iterable[str], model: str | None = None) -> Mapping[str, Cells]:
    """Experiment -> its cells. model: instead of the recipes' own, a folder, file or name."""
    world: Changes = {} if model is None else {"model.path": _model_path(model)}
    return {name: make(world) for name, make in EXPERIMENTS.items() if name in names}


def _model_path(model: str) -> str:
    return str(Path(model).absolute()) if Path(model).exists() else model


def seed_groups(planned: Mapping[str, Cells], seeds: Sequence[int]) -> list[Group]:
    """All cells, the first seed's before the second's: what is interrupted leaves whole seeds."""
    return [
        (seed, [cells[method] for method in group])
        for seed in seeds
        for name, cells in planned.items()
        for group in GROUPS[name]
    ]
