"""From a recipe to its setting: clients, model folder and judge, checked before work starts."""

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
from fedsdr.data.partition import build_clients
from fedsdr.data.records import ClientData
from fedsdr.data.sources import skipped_rows
from fedsdr.distillation.cache import RewriteCache
from fedsdr.distillation.verify import check_verifier
from fedsdr.evaluate.benchmarks.table import ChosenBenchmark, choose_benchmarks
from fedsdr.federation.workbench import Benchmarks, Evaluator, Workbench
from fedsdr.generation.table import check_generator
from fedsdr.lab.evaluate import LabEvaluator
from fedsdr.lab.pretrain import PretrainOptions, base_model_folder, save_outline
from fedsdr.lab.world import World, WorldOptions, build_world, client_name
from fedsdr.model.base import LoadedModel, check_model, load_base
from fedsdr.model.folder import has_tokenizer
from fedsdr.model.obtain import cached_model, obtain_model
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.choices import check_cohort
from fedsdr.recipe.load import override_recipe, recipe_differences
from fedsdr.recipe.methods import CHOICE_KEYS, NAMED_METHODS, named_recipe, own_name
from fedsdr.recipe.sections.data import Data, Split
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.table import choose_backends as choose_backends
from fedsdr.workflows.examples import PreparedClient, prepare_records


def cache_folder() -> Path:
    """Where base models of the lab and rewrites are kept: $FEDSDR_CACHE, or ~/.cache/fedsdr."""
    return Path(os.environ.get("FEDSDR_CACHE") or Path.home() / ".cache" / "fedsdr")


def rewrite_cache(folder: Path | None = None) -> RewriteCache:
    """The cache of rewrites in `folder`, or the common one, to be closed by who opens it."""
    return RewriteCache((folder or cache_folder()) / "rewrites.sqlite")


@dataclass(frozen=True)
class Setting:
    """A checked recipe with its clients' records and their tokens, before any model is loaded."""

    recipe: Recipe
    clients: list[ClientData]
    world: World | None
    benchmarks: tuple[ChosenBenchmark, ...] = ()
    prepared: PreparedClient = field(default_factory=PreparedClient)

    @property
    def notices(self) -> list[Notice]:
        """What a run of this setting leaves out, a line each."""
        return [*_skipped(self.recipe), *self.prepared.notices]

    def least_bytes(self) -> int:
        """What a run of this setting writes at least: the adapters of each method and its
        checkpoint, and S at each client in both."""
        each = 2 * self.prepared.adapter_bytes
        return sum(
            each * (1 + (method.federation.targets == "two_stream") * len(self.clients))
            for method in methods_of(self.recipe)
            if method.federation.rounds
        )

    def workbench(self, reporter: Reporter) -> Workbench:
        """Load the model."""
        evaluator = None if self.world is None else _lab_evaluator(self.world)
        base = base_of(self.recipe, reporter)
        suite = self._suite(base, reporter) if self.benchmarks else None
        encoded = self.prepared.encoded
        return Workbench(self.recipe, base, self.clients, encoded, evaluator, suite)

    def _suite(self, base: LoadedModel, reporter: Reporter) -> Benchmarks:
        from fedsdr.evaluate.benchmarks.harness import Suite
        from fedsdr.evaluate.benchmarks.harness_model import HarnessOptions

        options = HarnessOptions(limit=self.recipe.evaluate.benchmark_limit)
        return Suite(self.benchmarks, base, options, reporter)


def base_of(recipe: Recipe, reporter: Reporter) -> LoadedModel:
    """Load a recipe's model."""
    options = recipe.model
    return load_base(
        base_folder(recipe, reporter), options.template, recipe.dtype, options.device,
        options.quantisation, options.memory_check, options.date,
    )  # fmt: skip


def base_folder(recipe: Recipe, reporter: Reporter) -> str:
    """The folder or hub name of a recipe's model: the lab's is trained the first time, a GGUF file
    converted."""
    if not recipe.uses_lab:
        return obtain_model(recipe.model.path, cache_folder(), reporter)
    world = build_world(world_options(recipe))
    pretrain = PretrainOptions(steps=recipe.lab.pretrain_steps)
    return str(base_model_folder(world, pretrain, cache_folder(), reporter))


def prepare_run(recipe: Recipe, weights: bool = True, reporter: Reporter | None = None) -> Setting:
    """Read all data and check every name in the recipe; raises `UserError` for what is wrong.

    weights: whether the model must be there; a plan needs its configuration alone, and neither
    downloads nor converts it. reporter: receives a line before each download or conversion.
    """
    check_methods(recipe)
    _check_split(recipe.data)
    setting = _gather(recipe, weights, reporter or silent_reporter())
    check_clients(recipe, [client.name for client in setting.clients])
    _check_rewriting(setting)
    return replace(_with_records(setting, weights), benchmarks=_benchmarks(recipe))


def prepare_client(recipe: Recipe, client: str, reporter: Reporter | None = None) -> Setting:
    """The setting of one client by itself, which holds its own records and nobody else's.

    Others' data may be named by the recipe or not; what is there of them is left out.
    """
    check_methods(recipe)
    setting = _gather(recipe, True, reporter or silent_reporter())
    mine = [each for each in setting.clients if each.name == client]
    if not mine:
        there = ", ".join(each.name for each in setting.clients)
        raise UserError(
            f"the recipe has no data for client {client!r}, only for {there}: add a "
            f'[[data.sources]] with client = "{client}"'
        )
    setting = replace(setting, clients=mine)
    _check_rewriting(setting)
    return _with_records(setting, weights=True)


def check_methods(recipe: Recipe) -> None:
    """Raise `UserError` where the recipe's method or a baseline cannot be built."""
    build_algorithm(recipe)
    choose_backends(recipe.tracking.backends)
    _check_baselines(recipe)


def _check_split(data: Data) -> None:
    if data.split != Split() and all(source.client is not None for source in data.sources):
        raise UserError(
            "data.split deals the records of sources without a client, and there is none: remove "
            "it, or the client of a source"
        )


def _gather(recipe: Recipe, weights: bool, reporter: Reporter) -> Setting:
    if recipe.uses_lab:
        world = build_world(world_options(recipe))
        return Setting(recipe, world.client_data(), world)
    options = recipe.model
    if weights:
        path = base_folder(recipe, reporter)
        check_model(path, options.template, options.device, options.quantisation)
    return Setting(recipe, build_clients(recipe.data, recipe.seed), None)


def _with_records(setting: Setting, weights: bool) -> Setting:
    """What the model makes of the records; a plan may guess it, where there is no tokenizer."""
    with plan_folder(setting.recipe) as path:
        if not weights and Path(path).is_dir() and not has_tokenizer(Path(path)):
            return setting
        methods = methods_of(setting.recipe)
        prepared = prepare_records(methods, setting.clients, path, weights)
        return replace(setting, prepared=prepared)


def _skipped(recipe: Recipe) -> list[Notice]:
    return [
        Notice("skipped", f"{each.skipped} of {each.rows} rows of {each.file}, without a response")
        for each in skipped_rows(recipe.data.sources)
    ]


def _check_rewriting(setting: Setting) -> None:
    records = [record for client in setting.clients for record in client.train]
    for each in methods_of(setting.recipe):
        check_generator(each.distill.generator)
        check_verifier(each.distill, records, setting.recipe.model.device)


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


def methods_of(recipe: Recipe) -> list[Recipe]:
    """The recipe's own method and its baselines."""
    return [recipe, *(named_recipe(name, recipe) for name in recipe.baselines)]


COMMON = (  # made once for all methods of a run
    "seed", "model.", "lora.", "data.", "lab.", "tracking.",
    "deployment.", "evaluate.limit", "evaluate.benchmark", "privacy.lifetime_epsilon",
)  # fmt: skip


def _check_baselines(recipe: Recipe) -> None:
    """Each can be built, is there once, and is not the recipe's own method: a run that counts
    twice under one name would pass for two seeds."""
    if taken := sorted({*NAMED_METHODS, *CHOICE_KEYS} & recipe.variants.keys()):
        raise UserError(f"variants.{taken[0]} has the name of a method: call it something else")
    for name in (*recipe.baselines, *recipe.variants):
        changed = recipe_differences(named_recipe(name, recipe), recipe)
        if fixed := [key for key in changed if key.startswith(COMMON)]:
            raise UserError(
                f"variants.{name} changes {fixed[0]}, but model, data, evaluation and a client's "
                "limit are common to all methods of a run: run another recipe for it"
            )
        try:
            build_algorithm(named_recipe(name, recipe))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    runs = {own_name(recipe): override_recipe(recipe, {"baselines": [], "variants": {}})}
    for name in recipe.baselines:
        each = named_recipe(name, recipe)
        for other, its in runs.items():
            if name == other or not recipe_differences(each, its):
                also = "" if name == other else f", as {name!r} too"
                raise UserError(
                    f"baselines would run {other!r} twice{also} (the recipe's own method is "
                    f"{own_name(recipe)!r}): remove it from baselines"
                )
        runs[name] = each


def check_clients(recipe: Recipe, names: Sequence[str]) -> None:
    """Those that `lora.ranks` names exist, and there are enough for every method's choices."""
    if unknown := sorted(recipe.lora.ranks.keys() - set(names)):
        raise UserError(
            f"lora.ranks names {unknown[0]!r}, which is not a client: there are {', '.join(names)}"
        )
    for each in methods_of(recipe):
        federation = each.federation
        if federation.pooled:
            continue
        there = present_clients(names, federation.late, federation.late_round, 1)
        if not there:
            raise UserError(
                f"federation.late = {federation.late} leaves nobody for round 1 of {len(names)} "
                "client(s): set it to 0, or late_round to 0"
            )
        check_cohort(each, cohort_size(len(there), federation.participation))


def lab_clients(recipe: Recipe) -> list[str]:
    """The names of the lab's clients."""
    return [client_name(k) for k in range(recipe.lab.clients)]


def world_options(recipe: Recipe) -> WorldOptions:
    lab = recipe.lab
    return WorldOptions(
        seed=recipe.seed if lab.seed is None else lab.seed,
        entities=lab.entities,
        clients=lab.clients,
        changed=lab.changed,
        stubbornness=lab.stubbornness,
        style_overlap=lab.style_overlap,
        alpha=lab.alpha,
        imbalance=lab.imbalance,
    )


def _lab_evaluator(world: World) -> Callable[[LoadedModel], Evaluator]:
    return lambda base: LabEvaluator(base.model, base.chat, world)
