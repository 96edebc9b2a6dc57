"""Runs: start one, open a finished one, read its metrics as tables, load its models by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from fedsdr.api.judging import JudgeRequest, ask_judge, prepared_judging
from fedsdr.api.progress import ProgressOption, call_reporter
from fedsdr.chat.conversation import ChatOptions, Conversation
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import METRICS_FILE, PERSONAL_FILE, REPORT_FILE, RESULT_FILE, SUMMARY_FILE
from fedsdr.export.card import Artefact
from fedsdr.export.opened import OpenedModel, open_model
from fedsdr.export.write import ExportChoice, export_model
from fedsdr.judge.client import Endpoint
from fedsdr.recipe.load import RecipeSource, load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.report.html import write_report
from fedsdr.workflows.benchmark import BenchmarkRequest, run_benchmarks
from fedsdr.workflows.finished import GLOBAL_MODEL, Finished, Models, open_finished
from fedsdr.workflows.run import compare_seeds, run_demo, run_recipe

MetricRows = list[dict[str, Any]]  # a table: pandas.DataFrame(rows) makes it one


@dataclass(frozen=True, repr=False)
class Run:
    """A trained run: its metrics as tables and its models by name.

    Names of models: "base"; "global" and "client:NAME", of the run's own method; "METHOD" and
    "METHOD/client:NAME", of a baseline.
    """

    finished: Finished

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {', '.join(self.methods)})"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.finished.folder

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe, defaults included."""
        return self.finished.recipe

    @property
    def methods(self) -> list[str]:
        """The baselines and, last, the run's own method."""
        return list(self.finished.methods)

    @property
    def models(self) -> list[str]:
        """Names that `model`, `evaluate`, `judge`, `export` and `chat` accept."""
        return self.finished.model_names()

    @property
    def report(self) -> Path:
        """The report, one HTML page."""
        return self.folder / REPORT_FILE

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: metrics of all methods, tested claims, privacy spent."""
        return _summary(self.folder)

    def metrics(self) -> MetricRows:
        """A row per method: `method` and its final metrics. A method whose last evaluation is
        missing has no row."""
        found = {name: folder / RESULT_FILE for name, folder in self.finished.methods.items()}
        return [
            {"method": name, **files.read_json(file)}
            for name, file in found.items()
            if file.exists()
        ]

    def rounds(self) -> MetricRows:
        """A row per method and round: `method`, `round` (0 is before training), `clients`, and
        metrics as `train/NAME` and, in rounds with an evaluation, `eval/NAME`."""
        return [
            {"method": name, **_flat(row)}
            for name, folder in self.finished.methods.items()
            for row in files.read_json_lines(folder / METRICS_FILE)
        ]

    def clients(self) -> MetricRows:
        """A row per method and client: `method`, `client`, and the metrics of the client's own
        model on its held-out records."""
        found = {name: folder / PERSONAL_FILE for name, folder in self.finished.methods.items()}
        return [
            {"method": name, "client": client, **scores}
            for name, file in found.items()
            if file.exists()
            for client, scores in files.read_json(file).items()
        ]

    def model(
        self, name: str = GLOBAL_MODEL, *, merged: bool = False, progress: ProgressOption = True
    ) -> OpenedModel:
        """Load a model: `model, tokenizer = run.model("global")`.

        The model is a `PeftModel` on the run's base model; merged: a transformers model with the
        adapters added to its weights. "base" is a transformers model, too. It is in evaluation
        mode and on the recipe's device; its generation settings give the run's greedy answers. The
        tokenizer has the run's chat template. Each call loads the base model again. Raises
        `UserError` for an unknown name, and for `merged` if the weights are quantised.
        """
        with call_reporter(progress) as reporter:
            return open_model(self.finished, name, merged, reporter)

    def evaluate(
        self, tasks: Sequence[str], *, progress: ProgressOption = True, **options: Any
    ) -> dict[str, Any]:
        """Run benchmarks on this run's models: `benchmark_models(run.folder, tasks, **options)`."""
        return benchmark_models(self.folder, tasks, progress=progress, **options)

    def judge(
        self,
        questions: str | PathLike[str],
        endpoint: Endpoint,
        *,
        progress: ProgressOption = True,
        **options: Any,
    ) -> dict[str, Any]:
        """Have this run's models answer questions, and another model judge the answers.

        endpoint: `fedsdr.judge_endpoint("MODEL")`. options: the other fields of `JudgeRequest`:
        `a`, `b`, `max_cost`, ... Writes judge.json, and returns win rates or ratings with their
        intervals. The same call again continues an interrupted one.
        """
        request = JudgeRequest(questions, **options)
        with prepared_judging(self.finished, request, endpoint, progress) as prepared:
            return ask_judge(prepared, progress)

    def export(
        self,
        out: str | PathLike[str],
        model: str = GLOBAL_MODEL,
        *,
        merged: bool = False,
        dtype: str = "",
        base: str = "",
        client_names: bool = False,
        progress: ProgressOption = True,
    ) -> Artefact:
        """Write a model into a new folder, with its tokenizer and a model card.

        merged: whole weights instead of a PEFT adapter. dtype: "float32", "bfloat16" or "float16";
        "" keeps the run's. base: the base model's public name, if its path in the run is local.
        client_names: whether the card may name clients.
        """
        choice = ExportChoice(model, merged, dtype, base, client_names)
        with call_reporter(progress) as reporter:
            return export_model(self.finished, choice, Path(out), reporter)

    def chat(
        self,
        model: str = GLOBAL_MODEL,
        *,
        system: str = "",
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int = 0,
        notice: Callable[[str], None] = print,
        progress: ProgressOption = True,
    ) -> Conversation:
        """Start a conversation: `"".join(conversation.ask("Hello"))` is an answer.

        system: a system prompt. temperature: 0 is greedy. max_tokens: limit of an answer. seed:
        for sampling. notice: called with a line if the oldest turns no longer fit the context.
        """
        self.finished.check(model)  # before anything is loaded
        with call_reporter(progress) as reporter:
            models = Models(self.finished, reporter)
        manner = ChatOptions(system, temperature, max_tokens, seed)
        return Conversation(models, model, manner, notice)


@dataclass(frozen=True)
class Comparison:
    """The runs of one recipe with several seeds."""

    folder: Path

    @property
    def report(self) -> Path:
        """The report, one HTML page."""
        return self.folder / REPORT_FILE

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: estimates of all metrics, tested claims, privacy spent."""
        return _summary(self.folder)

    @property
    def runs(self) -> list[Run]:
        """The runs, in the order of the seeds."""
        return [open_run(self.folder / f"seed-{seed}") for seed in self.summary["seeds"]]

    def metrics(self) -> MetricRows:
        """A row per method and metric: `method`, `metric`, `mean` over seeds, `low` and `high` of
        its 95 % interval (Student's t), and the number of seeds `n`."""
        return [
            {"method": method, "metric": metric, **estimate}
            for method, metrics in self.summary["methods"].items()
            for metric, estimate in metrics.items()
        ]


def run(
    recipe: RecipeSource,
    out: str | PathLike[str],
    *,
    resume: bool = False,
    progress: ProgressOption = True,
) -> Run:
    """Run a recipe and its baselines into a new folder, with a report.

    resume: continue an interrupted call in `out`; a finished run is opened. Raises `UserError` for
    the first mistake, before any work.
    """
    with call_reporter(progress) as reporter:
        run_recipe(load_recipe(recipe), Path(out), reporter, resume)
    return open_run(out)


def compare(
    recipe: RecipeSource,
    out: str | PathLike[str],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    resume: bool = False,
    progress: ProgressOption = True,
) -> Comparison:
    """Run a recipe and its baselines for several seeds, for means with 95 % intervals.

    resume: continue an interrupted call in `out`. Raises `UserError` for the first mistake.
    """
    with call_reporter(progress) as reporter:
        compare_seeds(load_recipe(recipe), seeds, Path(out), reporter, resume)
    return Comparison(Path(out))


def demo(
    out: str | PathLike[str] = "runs/demo",
    *,
    model: str | PathLike[str] | None = None,
    seeds: Sequence[int] | None = None,
    progress: ProgressOption = True,
) -> Comparison:
    """Run the whole method on the embedded lab in a few minutes, or on an instruction model.

    model: a folder, a file or a name, as `model.path` of a recipe. Its clients are those of the
    English lab. seeds: by default 0, 1 and 2, with a model 0 alone. An interrupted demo is
    continued; a finished one is run again.
    """
    usual = (0, 1, 2) if model is None else (0,)
    chosen = usual if seeds is None else seeds
    with call_reporter(progress) as reporter:
        run_demo(Path(out), chosen, reporter, None if model is None else fspath(model))
    return Comparison(Path(out))


def open_run(folder: str | PathLike[str]) -> Run:
    """Open a run folder. Raises `UserError` unless all methods of the run are trained."""
    return Run(open_finished(Path(folder)))


def open_comparison(folder: str | PathLike[str]) -> Comparison:
    """Open the folder of a comparison. Raises `UserError` for any other folder."""
    if _summary(Path(folder))["kind"] != "compare":
        raise UserError(f"{folder} is not a comparison of several seeds: open it by open_run")
    return Comparison(Path(folder))


def benchmark_models(
    folder: str | PathLike[str],
    tasks: Sequence[str],
    *,
    data: str | PathLike[str] | None = None,
    models: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    against: str | PathLike[str] | None = None,
    limit: int | None = None,
    chat: bool = False,
    bos: bool | None = None,
    batch_size: int = 8,
    progress: ProgressOption = True,
) -> dict[str, Any]:
    """Run benchmarks on the models of a run folder, or on a model folder by itself.

    tasks: "mmlu", "bbh", "drop", "crass", "gsm8k", "truthfulqa", "arc_easy", "arc_challenge",
    "piqa", "openbookqa" or "hub:NAME". data: folder of the benchmarks' files. models: names; ()
    means the base and each global model, ("all",) all of them. out: folder for results, by default
    `benchmarks/` in the run folder; required for a model folder. against: another evaluated run,
    for paired differences. limit: questions per subject. chat: use the chat template. bos: whether
    prompts start with the BOS token; None as the tokenizer does, or with `chat` the template.
    Returns all results in `out` with standard errors and differences to the base model. Those that
    exist are not computed again.
    """
    request = BenchmarkRequest(
        Path(folder), list(tasks), _path(data), list(models), _path(out), _path(against), limit,
        chat, bos, batch_size,
    )  # fmt: skip
    with call_reporter(progress) as reporter:
        summary = run_benchmarks(request, reporter)
        if out is None and (Path(folder) / SUMMARY_FILE).exists():
            write_report(Path(folder))
    return summary


def _summary(folder: Path) -> dict[str, Any]:
    file = folder / SUMMARY_FILE
    if not file.exists():
        raise UserError(f"{folder} has no {SUMMARY_FILE}: finish the run with resume")
    return dict(files.read_json(file))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without nesting."""
    parts = {
        f"{part}/{name}": value
        for part in ("train", "eval")
        for name, value in row.get(part, {}).items()
    }
    return {"round": row["round"], "clients": row.get("clients", []), **parts}


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)
