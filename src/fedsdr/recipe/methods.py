"""Methods by name: the changes that turn any recipe into the paper's method or a baseline.

A name is one of `METHODS`, or choices of `[federation]` joined by plus signs, in any order:
"fedprox", "fedsd+fedadam", "fedsdr+flexlora", "fedsd_verified+scaffold", "fedsdr+ditto+median".
Choices that a name does not mention are the plain ones (FedAvg, factors, raw, none); everything
else, privacy too, is as in the recipe.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from fedsdr.algorithms.table import TABLES
from fedsdr.core.errors import UserError
from fedsdr.recipe.load import flatten_tables, override_recipe
from fedsdr.recipe.sections.recipe import Recipe

Changes = Mapping[str, Any]

PLAIN_CHOICES: Final[Mapping[str, Any]] = {
    "federation.algorithm": "fedavg",
    "federation.lora_aggregation": "factors",
    "federation.targets": "raw",
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
    "central": lambda recipe: {"federation.pooled": True},
}

# Rows by which a method can be called; the plain choices need no name, but for FedAvg.
CHOICE_KEYS: Final[Mapping[str, str]] = {
    name: key
    for key in PLAIN_CHOICES
    if key in TABLES and key != "federation.targets"
    for name in TABLES[key]
    if name not in ("none", "factors")
}


# What its targets add to the name of a recipe's own method; the last is no name to choose by.
NAMED_PART: Final[Mapping[str, list[str]]] = {
    "raw": [],
    "distilled": ["fedsd"],
    "mixed": ["mixed"],
    "two_stream": ["fedsdr"],
    "two_shared_streams": ["fedsdr_shared"],
}


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
    return {**PLAIN_CHOICES, **changes}


def own_name(recipe: Recipe) -> str:
    """The name of the recipe's own method: its choices, those that are plain left out."""
    federation = recipe.federation
    parts = ["central"] if federation.pooled else []
    parts += NAMED_PART[federation.targets]
    for key, plain in PLAIN_CHOICES.items():
        chosen = getattr(federation, key.rpartition(".")[2])
        if chosen != plain and chosen in CHOICE_KEYS:
            parts.append(chosen)
    return "+".join(parts) or ("base" if federation.rounds == 0 else "fedavg")
