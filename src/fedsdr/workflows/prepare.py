"""From a recipe to a prepared run: its methods, clients and records, checked before work starts."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fedsdr.algorithms.participation import cohort_size, present_clients
from fedsdr.core.errors import UserError
from fedsdr.core.notices import Notice
from fedsdr.core.progress import Reporter, silent_reporter
from fedsdr.data.partition import read_clients
from fedsdr.data.records import ClientData
from fedsdr.data.rows import SkippedRow
from fedsdr.data.source_notices import source_notices
from fedsdr.data.sources import SourceRecords
from fedsdr.distillation.cache import RewriteCache
from fedsdr.distillation.verify import check_verifier
from fedsdr.evaluate.benchmarks.table import ChosenBenchmark, choose_benchmarks
from fedsdr.federation.loaded import Benchmarks, Evaluator, LoadedRun
from fedsdr.generation.table import check_generator
from fedsdr.lab.english.evaluate import EnglishEvaluator
from fedsdr.lab.english.world import EnglishWorld, build_english_world
from fedsdr.lab.evaluate import LabEvaluator
from fedsdr.lab.pretrain import PretrainOptions, base_model_folder, save_outline
from fedsdr.lab.world import World, WorldOptions, build_world
from fedsdr.model.base import LoadedModel, check_model, load_base
from fedsdr.model.folder import has_tokenizer
from fedsdr.model.obtain import cached_model, obtain_model
from fedsdr.recipe.choices import check_cohort
from fedsdr.recipe.methods import Method, resolve_methods
from fedsdr.recipe.sections.data import Data, Split
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.table import choose_backends
from fedsdr.workflows.examples import PreparedRecords, prepare_records


def cache_folder() -> Path:
    """Where base models of the lab and rewrites are kept: $FEDSDR_CACHE, or ~/.cache/fedsdr."""
    return Path(os.environ.get("FEDSDR_CACHE") or Path.home() / ".cache" / "fedsdr")


def rewrite_cache(folder: Path | None = None) -> RewriteCache:
    """The cache of rewrites in `folder`, or the common one, to be closed by who opens it."""
    return RewriteCache((folder or cache_folder()) / "rewrites.sqlite")


@dataclass(frozen=True)
class PreparedRun:
    """The checked methods of a run with their clients' records, before any model is loaded.

    methods: the baselines and, last, the run's own. world: of either lab, None without one.
    sources: what was read.
    """

    methods: tuple[Method, ...]
    clients: list[ClientData]
    world: World | EnglishWorld | None
    benchmarks: tuple[ChosenBenchmark, ...] = ()
    records: PreparedRecords = field(default_factory=PreparedRecords)
    sources: tuple[SourceRecords, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """The run's recipe, which is that of its own method."""
        return self.methods[-1].recipe

    @property
    def notices(self) -> list[Notice]:
        """What the run leaves out, a line each."""
        learn = self.recipe.data.learn
        return [*source_notices(self.sources, learn), *self.records.notices]

    @property
    def skipped(self) -> list[SkippedRow]:
        """The rows of the data that are left out."""
        read = [row for source in self.sources for row in source.skipped]
        return [*read, *self.records.skipped]

    def least_bytes(self) -> int:
        """What the run writes at least: the adapters of each method and its checkpoint, and S at
        each client in both."""
        each = 2 * self.records.adapter_bytes
        federations = [method.recipe.federation for method in self.methods]
        return sum(
            each * (1 + (federation.targets == "two_stream") * len(self.clients))
            for federation in federations
            if federation.rounds
        )

    def load(self, reporter: Reporter) -> LoadedRun:
        """Load the model."""
        evaluator = None if self.world is None else _world_evaluator(self.world)
        base = base_of(self.recipe, reporter)
        suite = self._suite(base, reporter) if self.benchmarks else None
        encoded = self.records.encoded
        prompts = self.world.public_questions() if isinstance(self.world, World) else ()
        return LoadedRun(self.recipe, base, self.clients, encoded, evaluator, suite, prompts)

    def _suite(self, base: LoadedModel, reporter: Reporter) -> Benchmarks:
        from fedsdr.evaluate.benchmarks.harness import Suite
        from fedsdr.evaluate.benchmarks.harness_model import HarnessOptions

        asked = self.recipe.evaluate
        options = HarnessOptions(limit=asked.benchmark_limit, chat=asked.benchmark_chat)
        return Suite(self.benchmarks, base, options, reporter)


def base_of(recipe: Recipe, reporter: Reporter) -> LoadedModel:
    """Load a recipe's model."""
    options = recipe.model
    return load_base(
        base_folder(recipe, reporter), options.template, recipe.dtype, options.device,
        options.quantisation, options.memory_check, options.date, options.thinking,
    )  # fmt: skip


def base_folder(recipe: Recipe, reporter: Reporter) -> str:
    """The folder or hub name of a recipe's model: the lab's is trained the first time, a GGUF file
    converted."""
    if not recipe.uses_lab:
        return obtain_model(recipe.model.path, cache_folder(), reporter)
    world = build_world(world_options(recipe))
    pretrain = PretrainOptions(steps=recipe.lab.pretrain_steps)
    return str(base_model_folder(world, pretrain, cache_folder(), reporter))


def prepare_run(
    recipe: Recipe, weights: bool = True, reporter: Reporter | None = None
) -> PreparedRun:
    """Resolve a recipe's methods, read all data and check every name; raises `UserError` for what
    is wrong.

    weights: whether the model must be there; a plan needs its configuration alone, and neither
    downloads nor converts it. reporter: receives a line before each download or conversion.
    """
    return prepare_methods(resolve_methods(recipe), weights, reporter)


def prepare_methods(
    methods: Sequence[Method], weights: bool = True, reporter: Reporter | None = None
) -> PreparedRun:
    """`prepare_run`, of methods that are resolved already."""
    recipe = methods[-1].recipe
    choose_backends(recipe.tracking.backends)
    _check_split(recipe.data)
    run = _gather(methods, weights, reporter or silent_reporter())
    check_clients(methods, [client.name for client in run.clients])
    _check_rewriting(run)
    return replace(_with_records(run, weights), benchmarks=_benchmarks(recipe))


def prepare_client(recipe: Recipe, client: str, reporter: Reporter | None = None) -> PreparedRun:
    """The run of one client by itself, which holds its own records and no other client's.

    Others' data may be named by the recipe or not; what is there of them is left out.
    """
    methods = resolve_methods(recipe)
    choose_backends(recipe.tracking.backends)
    run = _gather(methods, True, reporter or silent_reporter())
    mine = [each for each in run.clients if each.name == client]
    if not mine:
        there = ", ".join(each.name for each in run.clients)
        raise UserError(
            f"the recipe has no data for client {client!r}, only for {there}: add a "
            f'[[data.sources]] with client = "{client}"'
        )
    run = replace(run, clients=mine)
    _check_rewriting(run)
    return _with_records(run, weights=True)


def _check_split(data: Data) -> None:
    if data.split != Split() and all(source.client is not None for source in data.sources):
        raise UserError(
            "data.split deals the records of sources without a client, and there is none: remove "
            "it, or the client of a source"
        )


def _gather(methods: Sequence[Method], weights: bool, reporter: Reporter) -> PreparedRun:
    recipe, options = methods[-1].recipe, methods[-1].recipe.model
    if weights and not recipe.uses_lab:
        path = base_folder(recipe, reporter)
        check_model(path, options.template, options.device, options.quantisation, options.thinking)
    if world := world_of(recipe):
        return PreparedRun(tuple(methods), world.client_data(), world)
    sources, clients = read_clients(recipe.data, recipe.seed)
    return PreparedRun(tuple(methods), clients, None, sources=tuple(sources))


def _with_records(run: PreparedRun, weights: bool) -> PreparedRun:
    """What the model makes of the records; a plan may guess it, where there is no tokenizer."""
    with plan_folder(run.recipe) as path:
        if not weights and Path(path).is_dir() and not has_tokenizer(Path(path)):
            return run
        records = prepare_records(run.methods, run.clients, path, weights)
        return replace(run, records=records, clients=[*records.clients])


def _check_rewriting(run: PreparedRun) -> None:
    records = [record for client in run.clients for record in client.train]
    for method in run.methods:
        check_generator(method.recipe.distill.generator)
        check_verifier(method.recipe.distill, records, run.recipe.model.device)


def _benchmarks(recipe: Recipe) -> tuple[ChosenBenchmark, ...]:
    names, data = recipe.evaluate.benchmarks, recipe.evaluate.benchmark_data
    if not names:
        return ()
    return tuple(choose_benchmarks(names, Path(data) if data else None, "evaluate.benchmarks"))


@contextmanager
def plan_folder(recipe: Recipe, reporter: Reporter | None = None) -> Iterator[str]:
    """A folder with configuration and tokenizer of the recipe's model: its own, or, for the lab
    whose base may not be trained yet, one for as long as it is used.

    reporter: receives a line before each download or conversion. Without one there is none, and
    a model that needs it raises `UserError`.
    """
    if not recipe.uses_lab:
        path, cache = recipe.model.path, cache_folder()
        yield obtain_model(path, cache, reporter) if reporter else cached_model(path, cache)
        return
    with TemporaryDirectory() as folder:
        save_outline(build_world(world_options(recipe)), PretrainOptions(), Path(folder))
        yield folder


def check_clients(methods: Sequence[Method], names: Sequence[str]) -> None:
    """Those that `lora.ranks` names exist, and there are enough for every method's choices."""
    recipe = methods[-1].recipe
    if unknown := sorted(recipe.lora.ranks.keys() - set(names)):
        raise UserError(
            f"lora.ranks names {unknown[0]!r}, which is not a client: there are {', '.join(names)}"
        )
    for each in (method.recipe for method in methods):
        federation = each.federation
        if federation.pooled:
            continue
        there = present_clients(names, federation.late, federation.late_round, 1)
        if not there:
            raise UserError(
                f"federation.late = {federation.late} leaves no client for round 1 of {len(names)} "
                "client(s): set it to 0, or late_round to 0"
            )
        check_cohort(each, cohort_size(len(there), federation.participation))


def world_of(recipe: Recipe) -> World | EnglishWorld | None:
    """The world that a recipe's clients learn, of either lab; None where it names data."""
    if recipe.english is not None:
        return build_english_world(recipe.english, recipe.world_seed)
    return build_world(world_options(recipe)) if recipe.uses_lab else None


def world_options(recipe: Recipe) -> WorldOptions:
    """The options of the synthetic lab's world."""
    lab = recipe.lab
    return WorldOptions(
        seed=recipe.world_seed,
        entities=lab.entities,
        clients=lab.clients,
        changed=lab.changed,
        stubbornness=lab.stubbornness,
        style_overlap=lab.style_overlap,
        alpha=lab.alpha,
        imbalance=lab.imbalance,
    )


def _world_evaluator(world: World | EnglishWorld) -> Callable[[LoadedModel], Evaluator]:
    if isinstance(world, EnglishWorld):
        return lambda base: EnglishEvaluator(base.model, base.chat, world)
    return lambda base: LabEvaluator(base.model, base.chat, world)
