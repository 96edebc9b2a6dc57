"""A run: the recipe's method and its baselines, each in a folder that a crash cannot corrupt.

DIR/recipe.toml  environment.json  partition.json  summary.json  report.html
DIR/metrics.jsonl  distillation.json  checkpoint.safetensors  result.json  global/  clients/<id>/
DIR/baselines/<name>/   recipe.toml and the second line again, for each baseline
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fedsdr import files
from fedsdr.adapters import Adapter, unwrap
from fedsdr.algorithms.contract import Algorithm, Personal, ServerState, Targets
from fedsdr.algorithms.table import build_algorithm
from fedsdr.data.partition import describe, pool
from fedsdr.data.template import Example
from fedsdr.distill.cache import RewriteCache
from fedsdr.distill.rewrite import Rewritten, sample_pairs, summarise
from fedsdr.engines.in_process import InProcess
from fedsdr.engines.workbench import Workbench
from fedsdr.environment import describe_environment
from fedsdr.errors import UserError
from fedsdr.evaluate.claims import judge_claims
from fedsdr.evaluate.intervals import estimates
from fedsdr.methods import method, own_name
from fedsdr.metrics import Metrics, merge_all
from fedsdr.model.peft_format import write_adapter
from fedsdr.progress import Reporter
from fedsdr.recipe import Recipe, differences, load_recipe, to_toml
from fedsdr.report.html import write_report
from fedsdr.setting import cache_folder, prepare
from fedsdr.training.rounds import METRICS_FILE, RoundOptions, finite, run_rounds
from fedsdr.training.store import ClientStore

RECIPE_FILE = "recipe.toml"
SUMMARY_FILE = "summary.json"
RESULT_FILE = "result.json"  # a finished method's final metrics
REPORT_FILE = "report.html"  # the last thing that a run writes


def run(recipe: Recipe, out: Path, reporter: Reporter, resume: bool = False) -> dict[str, Any]:
    """Run a recipe into a folder, or go on with what a killed run left there.

    Returns the summary. Raises `UserError` before any work, and before anything is written,
    where the recipe, its data or the folder are wrong.
    """
    setting = prepare(recipe)
    check_folder(out, recipe, resume)
    if resume and (out / REPORT_FILE).exists():
        return dict(files.read_json(out / SUMMARY_FILE))
    began = time.perf_counter()
    bench = setting.workbench(reporter)
    claim_folder(out, recipe)
    files.write_json(out / "environment.json", describe_environment(recipe.seed))
    files.write_json(out / "partition.json", describe(bench.clients))
    for name, folder, each in method_folders(recipe, out):
        run_method(bench, each, folder, name, reporter)
    return summarise_runs([recipe.seed], [out], out, time.perf_counter() - began)


def compare(
    recipe: Recipe, seeds: Sequence[int], out: Path, reporter: Reporter, resume: bool = False
) -> dict[str, Any]:
    """Run a recipe and its baselines for several seeds, each into `out/seed-N`; summarise."""
    began = time.perf_counter()
    recipes = [recipe.model_copy(update={"seed": seed}) for seed in seeds]
    for each in recipes:
        prepare(each)
    check_folder(out, recipe, resume)
    claim_folder(out, recipe)
    folders = [out / f"seed-{seed}" for seed in seeds]
    for each, folder in zip(recipes, folders, strict=True):
        reporter.say(f"seed {each.seed}")
        run(each, folder, reporter, resume)
    return summarise_runs(seeds, folders, out, time.perf_counter() - began)


def demo(out: Path, seeds: Sequence[int], reporter: Reporter) -> dict[str, Any]:
    """The embedded demonstration; a finished one in `out` is replaced, another one resumed.

    Raises `UserError` where `out` holds anything else.
    """
    with resources.as_file(resources.files("fedsdr.lab") / "demo.toml") as path:
        recipe = load_recipe(path)
    check_folder(out, recipe, resume=True)
    if (out / SUMMARY_FILE).exists():
        shutil.rmtree(out)
    return compare(recipe, seeds, out, reporter, resume=True)


def check_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Raise unless `out` is new, or a run of the same recipe to resume; nothing is written over."""
    file = out / RECIPE_FILE
    try:
        begun, taken = file.exists(), out.exists() and not _is_unused(out)
    except OSError as error:
        raise UserError(f"cannot use {out}: {error}: give another --out") from error
    if resume and begun:
        if changed := differences(load_recipe(file), recipe):
            raise UserError(
                f"{out} holds a run of another recipe (they differ in {', '.join(changed)}): "
                "resume with the recipe it was started with, or give another --out"
            )
        return
    if taken:
        raise UserError(
            f"{out} is not empty and nothing is written over: "
            + ("go on with it by --resume, or " if begun else "")
            + "give another --out"
        )


def _is_unused(out: Path) -> bool:
    """An empty folder, or one whose recipe a killed run was about to write."""
    return out.is_dir() and all(path.match(f".{RECIPE_FILE}.*.tmp") for path in out.iterdir())


def claim_folder(out: Path, recipe: Recipe) -> None:
    """Make the folder, its recipe first: that is what --resume goes by."""
    try:
        if not (out / RECIPE_FILE).exists():
            files.write_text(out / RECIPE_FILE, to_toml(recipe))
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error}: give another --out") from error


def method_folders(recipe: Recipe, out: Path) -> list[tuple[str, Path, Recipe]]:
    """(name, folder, recipe) of the baselines and, last, the recipe's own method."""
    baselines = [(n, out / "baselines" / n, method(n, recipe)) for n in recipe.baselines]
    return [*baselines, (own_name(recipe), out, recipe)]


def run_method(
    bench: Workbench, recipe: Recipe, folder: Path, name: str, reporter: Reporter
) -> None:
    """One method from start or checkpoint to its result; a finished one is left alone."""
    if (folder / RESULT_FILE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / RECIPE_FILE, to_toml(recipe))
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
    result = dict(rows[-1]["eval"])
    personal: list[Metrics] = []
    for client in engine.clients():
        own = algorithm.personal(shared, engine.state(client, recipe.federation.rounds))
        if own.private is not None:
            settings = bench.adapter_settings
            target = engine.store.client_folder(client) / "private"
            write_adapter(target, unwrap(own.private), settings, private=True)
        if recipe.evaluate.personal and not recipe.federation.pooled:
            bench.use(own)
            personal.append(bench.evaluator.personal_model(client))
    scores = finite(merge_all(personal), recipe.federation.rounds)
    result |= {f"personal_{name}": score for name, score in scores.items()}
    files.write_json(folder / RESULT_FILE, result)


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
        folder / "distillation.json",
        {
            "clients": {client: summarise(each) for client, each in rewrites.items()},
            "pairs": [
                pair
                for client, each in rewrites.items()
                for pair in sample_pairs(client, each, seed)
            ],
        },
    )


def summarise_runs(
    seeds: Sequence[int], folders: Sequence[Path], out: Path, seconds: float
) -> dict[str, Any]:
    """Gather the results of finished runs into summary.json and report.html."""
    recipe = load_recipe(out / RECIPE_FILE)
    places = [(name, folder) for top in folders for name, folder, _ in method_folders(recipe, top)]
    names = list(dict.fromkeys(name for name, _ in places))
    runs = {
        name: [files.read_json(folder / RESULT_FILE) for each, folder in places if each == name]
        for name in names
    }
    summary = {
        "kind": "run" if folders == [out] else "compare",
        "name": out.name,
        "own": own_name(recipe),
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
        "methods": {name: estimates(each) for name, each in runs.items()},
        "runs": {
            name: [str(f.relative_to(out)) for each, f in places if each == name] for name in names
        },
        "claims": judge_claims(runs, own_name(recipe)),
    }
    files.write_json(out / SUMMARY_FILE, summary)
    write_report(out)
    return summary
