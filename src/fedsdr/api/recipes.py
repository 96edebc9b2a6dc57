"""What can be done with a recipe before it is run: check, plan, diagnose, distill."""

from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from fedsdr.api.progress import ProgressOption, call_reporter
from fedsdr.core.notices import Notice
from fedsdr.data.partition import describe_clients
from fedsdr.distillation.pilot import Pilot
from fedsdr.estimate.plan import RunPlan
from fedsdr.estimate.words import plan_costs
from fedsdr.recipe.load import RecipeSource, load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.report.diagnosis import write_diagnosis
from fedsdr.workflows.diagnose import DiagnosisOptions, check_diagnosis, run_diagnosis
from fedsdr.workflows.distill import pilot_methods, run_distillation
from fedsdr.workflows.plan import plan_prepared
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run_folder import check_folder, check_room, check_writable, claimed_folder


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe that would run.

    clients: a row for each client: `name`, `records` to learn from, `held_out` ones to judge by,
    `mean_prompt_words`, `mean_response_words`, and `categories`, name -> records.
    template: which chat template the model has. notices: what a run would leave out.
    """

    recipe: Recipe
    clients: list[dict[str, Any]]
    template: str
    notices: list[Notice]


class Diagnosis(NamedTuple):
    """found: data quality, divergences and advice, as in diagnosis.json. page: None where none was
    written."""

    found: dict[str, Any]
    plan: RunPlan
    page: Path | None


def check(
    recipe: RecipeSource,
    out: str | PathLike[str] | None = None,
    *,
    progress: ProgressOption = True,
) -> CheckedRecipe:
    """Check all that a run needs but the weights: every key, record and file of the model.

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
    """Estimate what a run takes: steps, tokens, bytes sent, memory and hours of every method.

    Loads no weights and writes nothing. out, resume: also check that a run could be written there.
    flops: operations a second, instead of measuring this device.
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

    out: a new folder for diagnosis.html, JSON and CSV. gradients: records of each client whose
    gradients are compared; None compares 32 where the weights are small. distilled: rewrite so many
    records of each client, and compare before with after; rewrites: a data file that has rewrites
    as responses, instead. weights: False loads none.
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
    """Rewrite the clients' responses without training: a later run finds them in the cache.

    resume: go on with what an interrupted call left in `out`. report: also write
    distillation.html, its figures and, in the clients' own folders, the texts. Returns the folder
    of each method that distils.
    """
    with call_reporter(progress) as reporter:
        return run_distillation(load_recipe(recipe), Path(out), reporter, resume, report)


def pilot_distillation(
    recipe: RecipeSource, records: int = 32, *, progress: ProgressOption = True
) -> dict[str, list[Pilot]]:
    """Rewrite a sample, and estimate what the gate would pass and what rewriting all would cost.

    records: of each client. Nothing is written. Returns, for each method that distils, a pilot of
    every client and, of several, one of all together.
    """
    with call_reporter(progress) as reporter:
        return pilot_methods(load_recipe(recipe), records, reporter)


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)
