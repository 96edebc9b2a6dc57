"""`fedsdr eval`: benchmarks on the models of a finished run, or on a plain model folder.

OUT/MODEL/TASK.json and .jsonl   one result (`fedsdr.evaluate.benchmarks.results`)
OUT/summary.json                 all results of OUT with their paired differences to the base model
OUT/against.json                 paired differences to another run's results

OUT is `benchmarks/` of the run folder. Pairs of model and benchmark that are done already are not
evaluated again, so an interrupted evaluation goes on where it stopped. A result says by content
what model and benchmark it is of: where either has changed, nothing of OUT is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import AGAINST_FILE, BENCHMARK_SUMMARY, BENCHMARKS_FOLDER, RECIPE_FILE
from fedsdr.core.progress import Reporter
from fedsdr.evaluate.benchmarks import results
from fedsdr.evaluate.benchmarks.results import Result
from fedsdr.evaluate.benchmarks.table import HUB_TASK, ChosenBenchmark, choose_benchmarks
from fedsdr.model.base import LoadedModel, check_model, load_base
from fedsdr.model.folder import CONFIG_FILE
from fedsdr.model.identity import Identity, differing_parts
from fedsdr.model.obtain import obtain_model
from fedsdr.workflows.finished import BASE_MODEL, CLIENT_PREFIX, Models, open_finished
from fedsdr.workflows.prepare import cache_folder
from fedsdr.workflows.run_folder import locked_folder

if TYPE_CHECKING:
    from fedsdr.evaluate.benchmarks.harness import Suite

ALL: Final = "all"


@dataclass(frozen=True)
class BenchmarkRequest:
    """What `fedsdr eval` was asked. target: a run folder, or a model folder or GGUF file, which
    need `out`.

    models: names as in `fedsdr.workflows.finished`; () is the base and every global model, ("all",)
    every model. against: a run folder, or a folder of results, to compare with.
    """

    target: Path
    tasks: Sequence[str]
    data: Path | None = None
    models: Sequence[str] = ()
    out: Path | None = None
    against: Path | None = None
    limit: int | None = None
    chat: bool = False
    bos: bool | None = None
    batch_size: int = 8


class Opened(Protocol):
    """A base model that can be made into others by name."""

    @property
    def base(self) -> LoadedModel: ...

    def names(self) -> list[str]: ...

    def use(self, name: str) -> None: ...

    def identity(self, name: str) -> Identity: ...


@dataclass(frozen=True)
class Plain:
    """A model folder without a run: the base model alone."""

    base: LoadedModel

    def names(self) -> list[str]:
        return [BASE_MODEL]

    def use(self, name: str) -> None:
        assert name == BASE_MODEL

    def identity(self, name: str) -> Identity:
        return self.base.identity


def run_benchmarks(request: BenchmarkRequest, reporter: Reporter) -> dict[str, Any]:
    """Evaluate what is not done yet, and write summary.json; returns it, with `against` in it.

    Raises `UserError` for whatever is wrong before anything is written.
    """
    for value, name in ((request.limit, "--limit"), (request.batch_size, "--batch-size")):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: expected at least 1")
    if not request.target.is_dir():
        obtained = obtain_model(str(request.target), cache_folder(), reporter)
        request = replace(request, target=Path(obtained))
    if not any((request.target / name).is_file() for name in (RECIPE_FILE, CONFIG_FILE)):
        raise UserError(
            f"{request.target} is neither a run folder (with {RECIPE_FILE}) nor a model folder "
            f"(with {CONFIG_FILE})"
        )
    out, names = _place(request), _names(request)
    others = _results_folder(request.against) if request.against else None
    chosen = choose_benchmarks(request.tasks, request.data)
    with locked_folder(out):
        evaluate_models(request, chosen, names, out, reporter, others)
        summary = summarise_results(out)
        if others is not None:
            summary["against"] = compare_results(out, others, request, names)
            files.write_json(out / AGAINST_FILE, summary["against"])
        return summary


def _place(request: BenchmarkRequest) -> Path:
    if request.out:
        return request.out
    if (request.target / RECIPE_FILE).is_file():
        return request.target / BENCHMARKS_FOLDER
    raise UserError(f"{request.target} is a model folder: say by --out where results go")


def _names(request: BenchmarkRequest) -> list[str]:
    """The models to evaluate; raises for one that is not there."""
    if (request.target / RECIPE_FILE).is_file():
        known = open_finished(request.target).model_names()
    else:
        check_model(str(request.target.absolute()))
        known = [BASE_MODEL]
    if list(request.models) == [ALL]:
        return known
    if unknown := [name for name in request.models if name not in known]:
        raise UserError(
            f"--models: {request.target} has no model {unknown[0]!r}: choose from "
            f"{', '.join(known)}, or {ALL}"
        )
    chosen = list(dict.fromkeys(request.models))
    return chosen or [name for name in known if CLIENT_PREFIX not in name]


def _open(request: BenchmarkRequest, reporter: Reporter) -> Opened:
    if (request.target / RECIPE_FILE).is_file():
        return Models(open_finished(request.target), reporter)
    return Plain(load_base(str(request.target.absolute())))


def evaluate_models(
    request: BenchmarkRequest,
    chosen: Sequence[ChosenBenchmark],
    names: Sequence[str],
    out: Path,
    reporter: Reporter,
    others: Path | None = None,
) -> None:
    """One model in memory for all; a pair's result is written as soon as it is there.

    others: results that these are to be compared with; raises at once where they cannot be.
    """
    from fedsdr.evaluate.benchmarks.harness import Suite
    from fedsdr.evaluate.benchmarks.harness_model import HarnessOptions

    models = _open(request, reporter)
    options = HarnessOptions(request.limit, request.chat, request.bos, request.batch_size)
    suite = Suite(chosen, models.base, options, reporter)
    _check_models(out, models, request.tasks)
    todo = {name: _missing(out, name, chosen, suite.settings) for name in names}
    if others is not None:
        _check_against(others, request, names, suite)
    with reporter.bar("evaluating", sum(map(len, todo.values()))) as bar:
        for name, tasks in todo.items():
            if tasks:
                models.use(name)
            for task in tasks:
                result = suite.run(task, name)
                results.write_result(out, replace(result, identity=models.identity(name)))
                bar.advance()


def _check_models(out: Path, models: Opened, tasks: Sequence[str]) -> None:
    """Raise unless every result that is there is of the model that has its name now; of a name
    that the models have not, unless it is of the same base model. Results of an earlier version,
    which do not say what they are of, are in the way of their own benchmark alone."""
    for done in stored_results(out):
        if not done.identity and done.task not in tasks:
            continue
        own = done.model in models.names()
        now = models.identity(done.model) if own else models.base.identity
        parts = differing_parts(now, done.identity) or (
            differing_parts(done.identity, now) if own else []
        )
        if parts:
            how = f"other {', '.join(parts)}" if done.identity else "which one, it does not say"
            raise UserError(
                f"{results.result_path(out, done.model, done.task)} is of another model than "
                f"{done.model!r} is now ({how}): give another --out, or delete that file"
            )


def _missing(out: Path, model: str, chosen: Sequence[ChosenBenchmark], settings: Any) -> list[str]:
    """The benchmarks that a model has not done; raises where one was done in another way."""
    missing = []
    for task in (each.name for each in chosen):
        done, asked = results.read_result(out, model, task), settings(task)
        if done is None:
            missing.append(task)
        elif changed := [key for key in asked if asked[key] != done.settings.get(key)]:
            if (key := changed[0]) == "benchmark":
                raise UserError(
                    f"{results.result_path(out, model, task)} was evaluated on other files "
                    "(questions, shots, or how they are asked): give another --out"
                )
            raise UserError(
                f"{results.result_path(out, model, task)} was evaluated with {key} = "
                f"{done.settings.get(key)}, not {asked[key]}: give another --out, or the same "
                "options"
            )
    return missing


def _check_against(
    others: Path, request: BenchmarkRequest, names: Sequence[str], suite: "Suite"
) -> None:
    """Raise where other results are of other questions, or asked otherwise, or there are none."""
    found = [results.read_result(others, name, task) for task in request.tasks for name in names]
    if not (known := [other for other in found if other is not None]):
        raise UserError(
            f"{others} has no result for {', '.join(names)} on {', '.join(request.tasks)}: "
            "evaluate that run first, with the same options"
        )
    for other in known:
        asked = suite.questions(other.task)
        if other.task.startswith(HUB_TASK):  # whose questions need not all have scores
            scored = {(question.id, question.hash) for question in other.questions}
            asked = [question for question in asked if (question.id, question.hash) in scored]
        mine = Result(other.model, other.task, suite.settings(other.task), tuple(asked))
        results.check_paired(mine, other)


def stored_results(out: Path) -> list[Result]:
    """All results in a folder: the base model first, then by name, tasks in order of name."""
    paths = sorted(out.glob("*/*.json"), key=lambda p: (unquote(p.parent.name) != BASE_MODEL, p))
    found = [results.read_result(out, unquote(p.parent.name), unquote(p.stem)) for p in paths]
    return [result for result in found if result is not None]


def summarise_results(out: Path) -> dict[str, Any]:
    """Write and return summary.json: every result, and its difference to the base model's."""
    everything = stored_results(out)
    base = {result.task: result for result in everything if result.model == BASE_MODEL}
    rows = []
    for result in everything:
        row = result.summary()
        reference = base.get(result.task)
        if reference is not None and reference is not result:
            row["to_base"] = _differences(result, reference)
        rows.append(row)
    summary = {"interval": INTERVAL, "results": rows}
    files.write_json(out / BENCHMARK_SUMMARY, summary)
    return summary


INTERVAL: Final = "95 % interval of the paired t statistic over the questions"


def _differences(a: Result, b: Result) -> dict[str, Any] | str:
    """Metric by metric; or in words why there are none."""
    try:
        return {metric: results.paired_results(a, b, metric) for metric in a.metrics}
    except UserError as error:
        return str(error)


def compare_results(
    out: Path, others: Path, request: BenchmarkRequest, names: Sequence[str]
) -> dict[str, Any]:
    """Differences of this run's models to those of the same name in another folder of results."""
    rows = []
    for name in names:
        for task in request.tasks:
            mine, other = (
                results.read_result(out, name, task),
                results.read_result(others, name, task),
            )
            if mine is not None and other is not None:
                differences = {m: results.paired_results(mine, other, m) for m in mine.metrics}
                rows.append({"model": name, "task": task, "differences": differences})
    return {"name": str(request.against), "interval": INTERVAL, "results": rows}


def _results_folder(against: Path) -> Path:
    folder = against / BENCHMARKS_FOLDER if (against / RECIPE_FILE).is_file() else against
    if not any(folder.glob("*/*.json")):
        raise UserError(
            f"--against {against} holds no results: run fedsdr eval on it first, with the same "
            "tasks and options"
        )
    return folder
