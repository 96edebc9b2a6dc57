"""Methods by name: the changes that turn any recipe into the paper's method or a baseline."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from fedsdr.errors import UserError
from fedsdr.recipe import Recipe, flat, override

Changes = Callable[[Recipe], Mapping[str, Any]]


def _single(algorithm: str, targets: str, **more: Any) -> Mapping[str, Any]:
    return {
        "federation.algorithm": algorithm,
        "federation.targets": targets,
        "federation.pooled": False,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def _verified(recipe: Recipe) -> Mapping[str, Any]:
    checks = dict.fromkeys((*recipe.distill.checks, "answer"))
    return _single("fedavg", "distilled", distill__checks=list(checks), distill__attempts=4)


def _pooled(recipe: Recipe) -> Mapping[str, Any]:
    """As many optimiser steps on the pooled data as all clients together take."""
    return _single("fedavg", "raw", federation__pooled=True)


METHODS: Final[Mapping[str, Changes]] = {
    "base": lambda recipe: _single("fedavg", "raw", federation__rounds=0),
    "fedavg": lambda recipe: _single("fedavg", "raw"),
    "fedsd": lambda recipe: _single("fedavg", "distilled"),
    "fedsd_verified": _verified,
    "fedsdr": lambda recipe: _single("fedavg", "two_stream"),
    "local": lambda recipe: _single("local", "raw"),
    "central": _pooled,
}


def method(name: str, recipe: Recipe) -> Recipe:
    """The recipe of a named method or variant, everything else as in `recipe`."""
    if name in recipe.variants:
        changes: Mapping[str, Any] = flat(recipe.variants[name])
    elif name in METHODS:
        changes = METHODS[name](recipe)
    else:
        names = ", ".join([*METHODS, *recipe.variants])
        raise UserError(f"baselines names {name!r}: choose from {names}, or define it in variants")
    return override(recipe, {**changes, "baselines": [], "variants": {}})


def own_name(recipe: Recipe) -> str:
    """The name of the recipe's own method: a known one's, or its choices spelt out."""
    federation = recipe.federation
    for name in METHODS:
        if name != "fedsd_verified" and method(name, recipe).federation == federation:
            return name
    targets = {"raw": "", "distilled": "fedsd+", "two_stream": "fedsdr+"}[federation.targets]
    return targets + federation.algorithm + ("+pooled" if federation.pooled else "")
