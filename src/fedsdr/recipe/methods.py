"""The methods of a run, and their names: the changes that turn a recipe into one of them.

A name is one of `METHODS`, or choices of `[federation]` joined by plus signs, in any order:
"fedprox", "fedsd+fedadam", "fedsdr+flexlora", "fedsd_verified+scaffold", "fedsdr+ditto+median".
Choices that a name does not mention are the plain ones (FedAvg, factors, raw, cross entropy, none);
everything else, privacy too, is as in the recipe, but for the keys that `method` sets there
(`fedsdr.recipe.sections.method`): they are its own method's alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fedsdr.algorithms.contract import Algorithm
from fedsdr.algorithms.table import TABLES
from fedsdr.core.errors import UserError
from fedsdr.core.layout import BASELINES_FOLDER
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.choices import CUSTOM
from fedsdr.recipe.load import flatten_tables, override_recipe, recipe_differences
from fedsdr.recipe.sections.method import FEDSDR2, PAPER
from fedsdr.recipe.sections.recipe import Recipe

Changes = Mapping[str, Any]

PLAIN_CHOICES: Final[Mapping[str, Any]] = {
    "federation.algorithm": "fedavg",
    "federation.lora_aggregation": "factors",
    "federation.targets": "raw",
    "federation.loss": "cross_entropy",
    "federation.personalisation": "none",
    "federation.robust": "none",
    "federation.compression": "none",
    "federation.pooled": False,
}


def _verified(recipe: Recipe) -> Changes:
    distill = recipe.distill
    checks = list(dict.fromkeys((*distill.checks, *distill.verify)))
    distil = {"distill.checks": checks, "distill.attempts": max(4, distill.attempts)}
    return {"federation.targets": "distilled", **distil}


# Parts of names that are not a row of a table: "central" takes as many optimiser steps on the
# pooled data as all clients together.
NAMED_METHODS: Final[Mapping[str, Callable[[Recipe], Changes]]] = {
    "base": lambda recipe: {"federation.rounds": 0},
    "fedsd": lambda recipe: {"federation.targets": "distilled"},
    "fedsd_verified": _verified,
    "mixed": lambda recipe: {"federation.targets": "mixed"},
    "fedsdr": lambda recipe: {"federation.targets": "two_stream"},
    "fedsdr2": lambda recipe: {"federation.targets": "two_stream", "method": FEDSDR2},
    "central": lambda recipe: {"federation.pooled": True},
}

# Rows by which a method can be called; the plain choices need no name, but for FedAvg.
CHOICE_KEYS: Final[Mapping[str, str]] = {
    name: key
    for key in PLAIN_CHOICES
    if key in TABLES and key != "federation.targets"
    for name in TABLES[key]
    if name not in ("none", "factors", "cross_entropy")
}


# What its targets add to the name of a recipe's own method; the last is no name to choose by.
NAMED_PART: Final[Mapping[str, list[str]]] = {
    "raw": [],
    "distilled": ["fedsd"],
    "mixed": ["mixed"],
    "two_stream": ["fedsdr"],
    "two_shared_streams": ["fedsdr_shared"],
}


# What is made once for all methods of a run, so that no variant may change it.
COMMON: Final = (
    "seed", "model.", "lora.", "data.", "lab.", "tracking.",
    "deployment.", "evaluate.limit", "evaluate.benchmark", "privacy.lifetime_epsilon",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One method of a run: a baseline, or the run's own.

    folder: where its files lie, within the run's folder; `within` says where that is.
    recipe: what the method is trained by, complete and validated; of the run's own method it is
        the run's recipe, baselines and variants included.
    algorithm: built from the recipe.
    """

    name: str
    folder: Path
    recipe: Recipe
    algorithm: Algorithm

    def within(self, out: Path) -> "Method":
        """The method of the run in `out`."""
        return replace(self, folder=out / self.folder)


def resolve_methods(
    recipe: Recipe, max_norm: float = math.inf, custom: Algorithm | None = None
) -> tuple[Method, ...]:
    """The baselines and, last, the recipe's own method, each validated and built once.

    max_norm, custom: as of `build_algorithm`; custom is for the recipe's own method. Raises
    `UserError` where one of them cannot be built, a variant changes what is common to all (whether
    it is a baseline or not), or a method would run twice: under one name in a summary, two runs
    would pass for two seeds.
    """
    algorithm = build_algorithm(recipe, max_norm, custom=custom)
    own = Method(own_name(recipe), Path(), recipe, algorithm)
    if taken := sorted({*NAMED_METHODS, *CHOICE_KEYS} & recipe.variants.keys()):
        raise UserError(f"variants.{taken[0]} has the name of a method: call it something else")
    named = {
        name: _resolve(name, recipe, max_norm)
        for name in dict.fromkeys((*recipe.baselines, *recipe.variants))
    }
    baselines = [named[name] for name in recipe.baselines]
    _check_distinct(own, baselines)
    return (*baselines, own)


def method_folders(recipe: Recipe, out: Path) -> dict[str, Path]:
    """Name -> folder of the baselines and, last, the recipe's own method, in the run's `out`."""
    return {name: out / _baseline_folder(name) for name in recipe.baselines} | {
        own_name(recipe): out
    }


def _baseline_folder(name: str) -> Path:
    return Path(BASELINES_FOLDER) / name


def _resolve(name: str, recipe: Recipe, max_norm: float) -> Method:
    named = named_recipe(name, recipe)
    changed = recipe_differences(named, recipe)
    if fixed := [key for key in changed if key.startswith(COMMON)]:
        raise UserError(
            f"variants.{name} changes {fixed[0]}, but model, data, evaluation and a client's "
            "limit are common to all methods of a run: run another recipe for it"
        )
    try:
        return Method(name, _baseline_folder(name), named, build_algorithm(named, max_norm))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _check_distinct(own: Method, baselines: Sequence[Method]) -> None:
    alone = own.recipe.model_copy(update={"baselines": (), "variants": {}})
    runs = {own.name: alone}
    for name, each in ((baseline.name, baseline.recipe) for baseline in baselines):
        for other, its in runs.items():
            if name == other or not recipe_differences(each, its):
                also = "" if name == other else f", as {name!r} too"
                raise UserError(
                    f"baselines would run {other!r} twice{also} (the recipe's own method is "
                    f"{own.name!r}): remove it from baselines"
                )
        runs[name] = each


def named_recipe(name: str, recipe: Recipe) -> Recipe:
    """The recipe of a named method or variant, everything else as in `recipe`."""
    changes = (
        flatten_tables(recipe.variants[name]) if name in recipe.variants else _changes(name, recipe)
    )
    return override_recipe(recipe, {**changes, "baselines": [], "variants": {}})


def _changes(name: str, recipe: Recipe) -> Changes:
    changes: dict[str, Any] = {}
    for part in name.split("+"):
        if part in NAMED_METHODS:
            more = NAMED_METHODS[part](recipe)
        elif part in CHOICE_KEYS:
            more = {CHOICE_KEYS[part]: part}
        else:
            known = ", ".join([*NAMED_METHODS, *sorted(CHOICE_KEYS), *recipe.variants])
            raise UserError(
                f"baselines names {name!r}, but {part!r} is not known: join some of {known} by +, "
                "or define it in variants"
            )
        if twice := changes.keys() & more.keys():
            raise UserError(f"baselines names {name!r}, which chooses {min(twice)} twice")
        changes |= more
    return {**PLAIN_CHOICES, "method": PAPER, **changes}


def own_name(recipe: Recipe) -> str:
    """The name of the recipe's own method: its choices, those that are plain left out."""
    federation = recipe.federation
    parts = ["central"] if federation.pooled else []
    parts += NAMED_PART[federation.targets] if recipe.method == PAPER else [recipe.method]
    for key, plain in PLAIN_CHOICES.items():
        chosen = getattr(federation, key.rpartition(".")[2])
        if chosen != plain and chosen in CHOICE_KEYS:
            parts.append(chosen)
        elif key == "federation.algorithm" and chosen.startswith(CUSTOM):
            parts.append(chosen.removeprefix(CUSTOM))
    return "+".join(parts) or ("base" if federation.rounds == 0 else "fedavg")
