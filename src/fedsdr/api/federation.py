"""A federation in memory, for algorithms that are given as objects."""

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
    """The clients, data and base model of a recipe, loaded once, to run algorithms on.

        federation = fedsdr.Federation("my.toml")
        run = federation.run(fedavg(federation.setup), "runs/mine", name="mine")

    An algorithm is any `fedsdr.algorithms.contract.Algorithm`; it needs no row in
    `fedsdr.algorithms.table`. docs/python.md has an example.
    """

    def __init__(self, recipe: RecipeSource, *, progress: ProgressOption = True) -> None:
        """Check the recipe, read the data and load the model.

        Raises `UserError` for the first mistake, before the model is loaded.
        """
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
        """Argument of algorithm factories: the recipe's local steps and learning rate."""
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

        name: of the algorithm in tables and in the report. composed: True puts the algorithm in
        the place of `federation.algorithm` and applies the recipe's other choices to it (targets,
        aggregation, robust mean, compression, privacy); False runs it unchanged: of the
        recipe, `federation.targets` decides whether records are rewritten, and `rehearsal.share`
        whether the base model's own texts are in its batches. resume: continue an
        interrupted call in `out`; the algorithm must be the same. Raises `UserError` before any
        work.
        """
        methods = self._methods(algorithm, name, composed)
        with call_reporter(progress) as reporter:
            run_in_process(methods, Path(out), reporter, resume, self._loaded)
        return open_run(out)

    def _methods(self, algorithm: Algorithm, name: str, composed: bool) -> tuple[Method, ...]:
        if not isinstance(algorithm, Algorithm):
            raise UserError(
                f"{algorithm!r:.80} is not an Algorithm: give what a factory returns, "
                "for example fedavg(federation.setup)"
            )
        if not CUSTOM_NAME.fullmatch(name) or name in {*NAMED_METHODS, *CHOICE_KEYS}:
            raise UserError(
                f"name = {name!r}: use letters, digits, - and _, and no name of an existing method"
            )
        if self.recipe.federation.pooled:
            raise UserError("federation.pooled = true has no federated algorithm: set it to false")
        if not composed and self.recipe.privacy.mode != "none":
            raise UserError(
                f"privacy.mode = {self.recipe.privacy.mode!r} needs composed = True, which adds "
                "the noise: leave composed out, or set privacy.mode to 'none'"
            )
        recipe = override_recipe(self.recipe, {"federation.algorithm": CUSTOM + name})
        *baselines, own = resolve_methods(recipe, custom=algorithm)
        return (*baselines, own if composed else replace(own, algorithm=algorithm))
