"""Functions of a recipe that come before training: check, plan, diagnose, distill."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from fedsdr.api.progress import ProgressOption, call_reporter
from fedsdr.core.notices import Notice
from fedsdr.data.partition import describe_clients
from fedsdr.distillation.pilot import Pilot
from fedsdr.distillation.prompts import check_prompts, read_prompts
from fedsdr.estimate.plan import RunPlan
from fedsdr.estimate.words import plan_costs
from fedsdr.recipe.load import RecipeSource, load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.report.diagnosis import write_diagnosis
from fedsdr.workflows.diagnose import DiagnosisOptions, check_diagnosis, run_diagnosis
from fedsdr.workflows.distill import pilot_methods, run_distillation
from fedsdr.workflows.plan import plan_prepared
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.prompts import PROMPT_SAMPLE, PromptComparison, run_comparison
from fedsdr.workflows.run_folder import check_folder, check_room, check_writable, claimed_folder


@dataclass(frozen=True)
class CheckedRecipe:
    """The result of `check`: the recipe would run.

    clients: a row for each client: `name`, `records` to learn from, `held_out` ones to judge by,
    `mean_prompt_words`, `mean_response_words`, and `categories`, name -> records.
    template: the model's chat template, in words. notices: records and layers that a run would
    leave out.
    """

    recipe: Recipe
    clients: list[dict[str, Any]]
    template: str
    notices: list[Notice]


class Diagnosis(NamedTuple):
    """The result of `diagnose`.

    found: the clients' records, how far they diverge, and advice, as in diagnosis.json. plan: what
    a run takes. page: diagnosis.html, or None without `out`.
    """

    found: dict[str, Any]
    plan: RunPlan
    page: Path | None


def check(
    recipe: RecipeSource,
    out: str | PathLike[str] | None = None,
    *,
    progress: ProgressOption = True,
) -> CheckedRecipe:
    """Check everything that a run needs except the weights: each key, record and model file.

    out: also check that a run could be written there. Raises `UserError` for the first mistake.
    """
    with call_reporter(progress) as reporter:
        loaded = load_recipe(recipe)
        prepared = prepare_run(loaded, reporter=reporter)
        if out is not None:
            check_folder(Path(out), loaded, resume=False)
            check_writable(Path(out))
            check_room(Path(out), prepared.least_bytes())
        rows = describe_clients(prepared.clients)
        return CheckedRecipe(loaded, rows, prepared.records.template, prepared.notices)


def plan(
    recipe: RecipeSource,
    out: str | PathLike[str] | None = None,
    *,
    resume: bool = False,
    flops: float | None = None,
) -> RunPlan:
    """Estimate what a run takes: steps, tokens, bytes sent, memory and hours of each method.

    Loads no weights and writes nothing. out, resume: also check that a run could be written there.
    flops: operations per second, instead of measuring this device.
    """
    with call_reporter(False):
        loaded = load_recipe(recipe)
        prepared = prepare_run(loaded, weights=False)
        if out is not None:
            check_folder(Path(out), loaded, resume)
        return plan_prepared(prepared, flops)


def diagnose(
    recipe: RecipeSource,
    out: str | PathLike[str] | None = None,
    *,
    gradients: int | None = None,
    distilled: int | None = None,
    rewrites: str | PathLike[str] | None = None,
    weights: bool = True,
    progress: ProgressOption = True,
) -> Diagnosis:
    """Measure how heterogeneous the clients are, before any training.

    out: a new folder for diagnosis.html, JSON and CSV. gradients: number of records per client
    whose gradients are compared; None means 32 if the weights are below 1 GB, else 0. distilled:
    number of records per client to rewrite, for a comparison of raw and rewritten responses;
    rewrites: a data file with rewrites as its responses, instead. weights: False loads none.
    """
    asked = DiagnosisOptions(gradients, distilled, _path(rewrites), weights)
    with call_reporter(progress) as reporter:
        loaded, folder = load_recipe(recipe), _path(out)
        with claimed_folder(folder, loaded, resume=False) if folder else nullcontext():
            check_diagnosis(asked)
            prepared = prepare_run(loaded, reporter=reporter)
            found = run_diagnosis(prepared, asked, reporter)
            estimated = plan_prepared(prepared)
            found["costs"] = plan_costs(estimated)
            page = write_diagnosis(folder, found) if folder else None
    return Diagnosis(found, estimated, page)


def distill(
    recipe: RecipeSource,
    out: str | PathLike[str],
    *,
    resume: bool = False,
    report: bool = False,
    progress: ProgressOption = True,
) -> dict[str, Path]:
    """Rewrite the clients' responses without training; a later run takes them from the cache.

    resume: continue an interrupted call in `out`. report: also write distillation.html with its
    figures, and each client's texts into the client's own folder. Returns method -> folder, for
    each method that distils.
    """
    with call_reporter(progress) as reporter:
        return run_distillation(load_recipe(recipe), Path(out), reporter, resume, report)


def pilot_distillation(
    recipe: RecipeSource, records: int = 32, *, progress: ProgressOption = True
) -> dict[str, list[Pilot]]:
    """Rewrite a sample, and estimate the gate's pass rates and the cost of rewriting all records.

    records: number per client. Writes nothing. Returns method -> a pilot per client, and if there
    are several clients one of all together.
    """
    with call_reporter(progress) as reporter:
        return pilot_methods(load_recipe(recipe), records, reporter)


def compare_prompts(
    recipe: RecipeSource,
    prompts: Mapping[str, str] | str | PathLike[str] | None = None,
    records: int = PROMPT_SAMPLE,
    *,
    progress: ProgressOption = True,
) -> PromptComparison:
    """Rewrite the same records with each of several prompts, and count what came of them.

    prompts: name -> text with `{instruction}` and `{response}`, or a file of them: TOML with such
    keys, or the text of one. The recipe's own prompt is compared with them; by default, all shipped
    prompts are compared. records: at most so many of each client, drawn by the recipe's seed.
    Writes nothing. Raises `UserError` for a prompt that could not be used.
    """
    if isinstance(prompts, str | PathLike):
        prompts = read_prompts(Path(prompts))
    elif prompts is not None:
        prompts = check_prompts(prompts, "prompts")
    with call_reporter(progress) as reporter:
        return run_comparison(load_recipe(recipe), prompts, records, reporter)


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)
