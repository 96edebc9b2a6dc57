"""Rewriting prompts compared on a user's own model and records."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

import tomli_w

from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.distillation.cache import NoCache
from fedsdr.distillation.pilot import draw_sample
from fedsdr.distillation.prompts import PromptTrial, best_trial, count_trial, indistinct_trials
from fedsdr.recipe.sections.prompts import shipped_prompts
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.distill import distilling_methods, open_rewriter
from fedsdr.workflows.prepare import prepare_run

PROMPT_SAMPLE: Final = 16  # records of each client


@dataclass(frozen=True)
class PromptComparison:
    """Prompts that were tried on the same sample.

    method: whose attempts and checks were used. clients: of the sample. raw_words: of a raw
    response in it, mean.
    """

    method: str
    clients: int
    raw_words: float
    trials: tuple[PromptTrial, ...]

    @property
    def best(self) -> PromptTrial:
        """By the rule of `best_trial`."""
        return best_trial(self.trials)

    @property
    def indistinct(self) -> list[PromptTrial]:
        """Those not shown to be worse than the best one, by `indistinct_trials`."""
        return indistinct_trials(self.best, self.trials)

    @property
    def toml(self) -> str:
        """What to write into the recipe to use the best one."""
        name, text = self.best.name, self.best.text
        prompt = name if shipped_prompts().get(name) == text else text
        return tomli_w.dumps({"distill": {"prompt": prompt}})


def run_comparison(
    recipe: Recipe, prompts: Mapping[str, str] | None, count: int, reporter: Reporter
) -> PromptComparison:
    """Rewrite up to `count` records of each client with each prompt; nothing is stored.

    prompts: name -> text, compared with the recipe's own prompt; None: all shipped ones. Of the
    recipe's methods the first that rewrites decides about attempts and checks.
    """
    if count < 1:
        raise UserError(f"cannot compare prompts on {count} records of each client: give 1 or more")
    run = prepare_run(recipe, reporter=reporter)
    method = distilling_methods(run.methods)[0]
    chosen = with_own_prompt(method.recipe.distill.prompt, prompts)
    rewriter = open_rewriter(run.load(reporter), method.recipe)
    seed = method.recipe.seed
    sample = {each.name: draw_sample(each.name, each.train, seed, count) for each in run.clients}
    trials = []
    for name, text in chosen.items():
        reporter.say(f"rewriting with the prompt {name!r}")
        began = time.perf_counter()
        options = rewriter.options.model_copy(update={"prompt": text})
        done = replace(rewriter, options=options).rewrite(NoCache(), reporter, sample)
        rewrites = [each for client in done.values() for each in client]
        trials.append(count_trial(name, text, rewrites, time.perf_counter() - began))
    raw = [len(record.response.split()) for records in sample.values() for record in records]
    return PromptComparison(method.name, len(run.clients), fmean(raw), tuple(trials))


def with_own_prompt(own: str, prompts: Mapping[str, str] | None) -> dict[str, str]:
    """The prompts to compare; the recipe's own one is the first, by its name if it has one."""
    known = shipped_prompts()
    given = known if prompts is None else prompts
    names = [name for table in (given, known) for name, text in table.items() if text == own]
    return {names[0] if names else "recipe": own} | dict(given)
