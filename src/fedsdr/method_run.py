"""One method, from the data of its clients to its adapters and final metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsdr import files
from fedsdr.adapters import Adapter, unwrap
from fedsdr.algorithms.contract import Algorithm, Personal, ServerState, Targets
from fedsdr.algorithms.table import build_algorithm
from fedsdr.data.partition import pool
from fedsdr.data.template import Example
from fedsdr.distill.cache import RewriteCache
from fedsdr.distill.rewrite import Rewritten, sample_pairs, summarise
from fedsdr.engines.in_process import InProcess
from fedsdr.engines.workbench import Workbench
from fedsdr.folders import DISTILLATION_FILE, PERSONAL_FILE, RECIPE_FILE, RESULT_FILE
from fedsdr.metrics import Metrics, merge_all, values
from fedsdr.model.peft_format import write_adapter
from fedsdr.progress import Reporter
from fedsdr.recipe import Recipe, override, to_toml
from fedsdr.setting import cache_folder
from fedsdr.training.rounds import METRICS_FILE, RoundOptions, cohort_size, finite, run_rounds
from fedsdr.training.store import ClientStore


def run_method(
    bench: Workbench, recipe: Recipe, folder: Path, name: str, reporter: Reporter
) -> None:
    """One method from start or checkpoint to its result; a finished one is left alone."""
    if (folder / RESULT_FILE).exists():
        return
    files.write_text(folder / RECIPE_FILE, to_toml(recipe))
    if recipe.federation.pooled:
        recipe = pooled_recipe(recipe, len(bench.clients))
    algorithm = build_algorithm(recipe)
    examples = client_examples(bench, recipe, folder, reporter)
    engine = InProcess(bench, recipe, examples, ClientStore(folder / "clients"), reporter)

    def evaluate(shared: Adapter) -> Metrics:
        bench.use(Personal(shared, None))
        return bench.evaluator.global_model()

    federation = recipe.federation
    options = RoundOptions(
        recipe.seed, federation.rounds, federation.participation, recipe.evaluate.every
    )
    first = bench.first_adapter(recipe.seed)
    state = run_rounds(algorithm, engine, first, options, evaluate, folder, reporter, name)
    finish_method(bench, recipe, folder, algorithm, state, engine)


def finish_method(
    bench: Workbench,
    recipe: Recipe,
    folder: Path,
    algorithm: Algorithm,
    state: ServerState,
    engine: InProcess,
) -> None:
    """Write the adapters and the final metrics of a method whose rounds are done."""
    shared = algorithm.broadcast(state)
    if shared:
        write_adapter(folder / "global", shared, bench.adapter_settings)
    rows = files.read_json_lines(folder / METRICS_FILE)
    result = dict(rows[-1]["eval"]) if shared else {}  # local training has no global model
    personal: dict[str, Metrics] = {}
    for client in engine.clients():
        own = algorithm.personal(shared, engine.state(client, recipe.federation.rounds))
        if own.private is not None:
            target = engine.store.client_folder(client) / "private"
            write_adapter(target, unwrap(own.private), bench.adapter_settings, private=True)
        if recipe.evaluate.personal and not recipe.federation.pooled:
            bench.use(own)
            personal[client] = bench.evaluator.personal_model(client)
    scores = finite(merge_all(personal.values()), recipe.federation.rounds)
    result |= {f"personal_{name}": score for name, score in scores.items()}
    files.write_json(folder / PERSONAL_FILE, {c: values(each) for c, each in personal.items()})
    files.write_json(folder / RESULT_FILE, result)


def pooled_recipe(recipe: Recipe, clients: int) -> Recipe:
    """Centralised training takes as many steps a round as all participants together."""
    steps = recipe.local.rectify_steps * cohort_size(clients, recipe.federation.participation)
    return override(recipe, {"local.rectify_steps": steps, "federation.participation": 1.0})


def client_examples(
    bench: Workbench, recipe: Recipe, folder: Path, reporter: Reporter
) -> Mapping[str, Mapping[Targets, Sequence[Example]]]:
    """Each client's tokenised records by kind of target, rewritten first where a method asks."""
    raw = bench.raw
    if recipe.federation.pooled:
        return {pool(bench.clients).name: {"raw": [e for each in raw.values() for e in each]}}
    if recipe.federation.targets == "raw" or recipe.federation.rounds == 0:
        return {client: {"raw": examples} for client, examples in raw.items()}
    with RewriteCache(cache_folder() / "rewrites.sqlite") as cache:
        rewrites = bench.rewrite(recipe, cache, reporter)
    record_distillation(folder, rewrites, recipe.seed)
    return {
        client.name: {
            "raw": raw[client.name],
            "distilled": bench.tokenise(
                client.name, client.train, [r.text for r in rewrites[client.name]]
            ),
        }
        for client in bench.clients
    }


def record_distillation(folder: Path, rewrites: Mapping[str, list[Rewritten]], seed: int) -> None:
    """Provenance: a line per record in the client's own folder, and a summary for the report."""
    store = ClientStore(folder / "clients")
    for client, each in rewrites.items():
        rows = [
            {"origin": r.record.origin, "source": r.source, "reason": r.reason,
             "attempts": r.attempts, "text": r.text}
            for r in each
        ]  # fmt: skip
        path = store.client_folder(client) / "rewrites.jsonl"
        files.write_json_lines(path, rows, private=True)
    files.write_json(
        folder / DISTILLATION_FILE,
        {
            "clients": {client: summarise(each) for client, each in rewrites.items()},
            "pairs": [
                pair
                for client, each in rewrites.items()
                for pair in sample_pairs(client, each, seed)
            ],
        },
    )
