"""A federation in memory, on which algorithms are run that no table has."""

import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Final

from fedsdr.algorithms.contract import Algorithm, Schedule, Setup
from fedsdr.api.progress import ProgressOption, call_reporter
from fedsdr.api.runs import Run, open_run
from fedsdr.core.errors import UserError
from fedsdr.recipe.choices import CUSTOM
from fedsdr.recipe.load import RecipeSource, load_recipe, override_recipe
from fedsdr.recipe.methods import CHOICE_KEYS, NAMED_METHODS, Method, resolve_methods
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run import run_in_process

CUSTOM_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Federation:
    """The clients, data and base model of a recipe, loaded once, on which algorithms are run.

        federation = fedsdr.Federation("my.toml")
        run = federation.run(fedavg(federation.setup), "runs/mine", name="mine")

    An algorithm is a `fedsdr.algorithms.contract.Algorithm`: a value, which needs no row in a
    table. docs/python.md has an example.
    """

    def __init__(self, recipe: RecipeSource, *, progress: ProgressOption = True) -> None:
        """Check the recipe, read the data and load the model. Raises `UserError`."""
        self.recipe: Recipe = load_recipe(recipe)
        alone = self.recipe.model_copy(update={"baselines": (), "variants": {}})
        with call_reporter(progress) as reporter:
            self._loaded = prepare_run(alone, reporter=reporter).load(reporter)

    @property
    def clients(self) -> list[str]:
        """The names of the clients."""
        return [client.name for client in self._loaded.clients]

    @property
    def setup(self) -> Setup:
        """What factories of algorithms take: the recipe's steps and learning rate in a round."""
        return Setup(Schedule(self.recipe.local.rectify_steps, self.recipe.local.rectify_lr))

    def run(
        self,
        algorithm: Algorithm,
        out: str | PathLike[str],
        *,
        name: str,
        composed: bool = True,
        resume: bool = False,
        progress: ProgressOption = True,
    ) -> Run:
        """Run an algorithm, and the recipe's baselines for comparison, into a new folder.

        name: of the algorithm, in tables and the report. composed: the algorithm takes the place
        of `federation.algorithm`, and wears the recipe's other choices (targets, aggregation,
        robust mean, compression, privacy); False runs it as it is, and `federation.targets` only
        says whether there are rewrites to learn from. resume: go on with what an interrupted call
        left in `out`, given the same algorithm.
        """
        methods = self._methods(algorithm, name, composed)
        with call_reporter(progress) as reporter:
            run_in_process(methods, Path(out), reporter, resume, self._loaded)
        return open_run(out)

    def _methods(self, algorithm: Algorithm, name: str, composed: bool) -> tuple[Method, ...]:
        if not isinstance(algorithm, Algorithm):
            raise UserError(
                f"{algorithm!r:.80} is no Algorithm: give what a factory returns, "
                "fedavg(federation.setup) say"
            )
        if not CUSTOM_NAME.fullmatch(name) or name in {*NAMED_METHODS, *CHOICE_KEYS}:
            raise UserError(
                f"name = {name!r}: give letters, digits, - and _ that are no method's name yet"
            )
        if self.recipe.federation.pooled:
            raise UserError("federation.pooled = true has no federated algorithm: set it to false")
        if not composed and self.recipe.privacy.mode != "none":
            raise UserError(
                f"privacy.mode = {self.recipe.privacy.mode!r} needs composed = True, which puts "
                "noise on what the algorithm sends: or set privacy.mode to 'none'"
            )
        recipe = override_recipe(self.recipe, {"federation.algorithm": CUSTOM + name})
        *baselines, own = resolve_methods(recipe, custom=algorithm)
        return (*baselines, own if composed else replace(own, algorithm=algorithm))
