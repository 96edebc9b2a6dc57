"""The one table of algorithms, and how a recipe's choices become one.

A new algorithm is one file in this folder and one row here.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from fedsdr.algorithms.contract import Algorithm, Schedule
from fedsdr.algorithms.distilled import distilled
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.local import local
from fedsdr.algorithms.two_stream import Smoothing, two_stream
from fedsdr.errors import UserError
from fedsdr.recipe import Local, Recipe


class Row(NamedTuple):
    """shares: whether there is a shared adapter, which a private stream can sit beside."""

    build: Callable[[Schedule], Algorithm]
    line: str
    citation: str
    shares: bool = True


ALGORITHMS: Final[Mapping[str, Row]] = {
    "fedavg": Row(fedavg, "weighted mean of the clients' changes", "McMahan et al. 2017"),
    "local": Row(local, "no federation: each client trains alone", "baseline", shares=False),
}


def build_algorithm(recipe: Recipe) -> Algorithm:
    """The recipe's algorithm, wearing the transform of its kind of targets."""
    name, options = recipe.federation.algorithm, recipe.local
    if name not in ALGORITHMS:
        raise UserError(
            f"federation.algorithm = {name!r} is not known: choose from {', '.join(ALGORITHMS)}"
        )
    if recipe.federation.targets == "two_stream" and not ALGORITHMS[name].shares:
        raise UserError(
            f"federation.algorithm = {name!r} has no shared adapter for a second stream to sit "
            "beside: set federation.targets to 'raw' or 'distilled'"
        )
    inner = ALGORITHMS[name].build(Schedule(options.rectify_steps, options.rectify_lr))
    return TARGETS[recipe.federation.targets](inner, options)


def _smoothing(options: Local) -> Smoothing:
    return Smoothing(
        schedule=Schedule(options.smooth_steps, options.smooth_lr),
        state=options.smoothing_state,
        context=options.smoothing_context,
        alone=options.rectify_alone,
    )


TARGETS: Final[Mapping[str, Callable[[Algorithm, Local], Algorithm]]] = {
    "raw": lambda inner, options: inner,
    "distilled": lambda inner, options: distilled(inner),
    "two_stream": lambda inner, options: two_stream(inner, _smoothing(options)),
}
