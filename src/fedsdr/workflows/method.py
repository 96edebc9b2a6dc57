"""One method, from the data of its clients to its adapters and final metrics."""

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from fedsdr.algorithms.aggregation.folding import merge_folded
from fedsdr.algorithms.contract import Algorithm, Personal, ServerState, Targets
from fedsdr.algorithms.participation import RoundOptions, cohort_size
from fedsdr.core import files, seeds
from fedsdr.core.adapters import Adapter, unwrap_private
from fedsdr.core.errors import UserError
from fedsdr.core.layout import (
    CLIENTS_FOLDER,
    DELIVERED_FILE,
    GLOBAL_ADAPTER,
    METRICS_FILE,
    NOISE_FILE,
    PERSONAL_ADAPTER,
    PERSONAL_FILE,
    RECIPE_FILE,
    RESULT_FILE,
    SMOOTHING_ADAPTER,
)
from fedsdr.core.metrics import Metrics, merge_all, metric_values
from fedsdr.core.progress import Reporter
from fedsdr.data.partition import pool_clients
from fedsdr.data.template import Example
from fedsdr.federation.in_process import InProcess
from fedsdr.federation.rounds import Periodic, finite_values, ignore_row, run_rounds
from fedsdr.federation.workbench import Workbench, rectification_adapter
from fedsdr.model.peft_format import AdapterSettings, write_adapter
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.load import override_recipe, to_toml
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.follow import Follower
from fedsdr.training.store import ClientStore
from fedsdr.workflows.distill import record_distillation, rewrite_all
from fedsdr.workflows.privacy_loss import privacy_spent

NOISE_SECRET: Final = re.compile(rf"[0-9a-f]{{{2 * seeds.SECRET_BYTES}}}")


def run_method(
    bench: Workbench,
    recipe: Recipe,
    folder: Path,
    name: str,
    reporter: Reporter,
    follower: Follower | None = None,
) -> None:
    """One method from start or checkpoint to its result; a finished one is left alone."""
    if (folder / RESULT_FILE).exists():
        return
    files.write_text(folder / RECIPE_FILE, to_toml(recipe))
    if recipe.federation.pooled:
        recipe = pooled_recipe(recipe, len(bench.clients))
    examples = client_examples(bench, recipe, folder, reporter)
    algorithm = build_algorithm(recipe)
    store, secret = ClientStore(folder / CLIENTS_FOLDER), noise_secret(recipe, folder)
    engine = InProcess(bench, recipe, examples, store, reporter, secret)

    def evaluate(deployed: Adapter) -> Metrics:
        bench.use(Personal(deployed))
        return bench.evaluator.global_model()

    benchmark = Periodic(
        recipe.evaluate.benchmark_every, lambda deployed: bench.benchmark(deployed, name)
    )
    first = bench.first_adapter(recipe.seed)
    rounds = recipe.federation.rounds

    def deliver(state: ServerState) -> None:
        write_global(folder, algorithm.deployed(state), bench.adapter_settings)
        for client in engine.clients():
            own = own_model(engine, algorithm, algorithm.broadcast(state), client, rounds)
            write_personal(own, engine, client)
        files.write_json(folder / DELIVERED_FILE, {"rounds": rounds})

    with follower or nullcontext() as tracking:
        observe = tracking.row if tracking else ignore_row
        state = run_rounds(
            algorithm,
            engine,
            first,
            round_options(recipe, secret),
            evaluate,
            folder,
            reporter,
            name,
            observe,
            benchmark if bench.benchmarks else None,
            deliver,
        )
        result = finish_method(recipe, folder, algorithm, state, engine)
        if tracking:
            tracking.final(result)
    files.write_json(folder / RESULT_FILE, result)


def round_options(recipe: Recipe, secret: bytes, quorum: int | None = None) -> RoundOptions:
    federation = recipe.federation
    return RoundOptions(
        recipe.seed, federation.rounds, federation.participation, recipe.evaluate.every, secret,
        federation.late, federation.late_round, quorum,
    )  # fmt: skip


def finish_method(
    recipe: Recipe, folder: Path, algorithm: Algorithm, state: ServerState, engine: InProcess
) -> dict[str, float]:
    """The final metrics of a method whose rounds are done and whose adapters are written."""
    shared, rounds = algorithm.broadcast(state), recipe.federation.rounds
    personal = {
        client: judge_personal(own_model(engine, algorithm, shared, client, rounds), engine, client)
        for client in engine.clients()
    }
    return conclude_method(recipe, folder, algorithm.deployed(state), personal)


def write_global(folder: Path, deployed: Adapter, settings: AdapterSettings) -> None:
    """Write the adapter of a method's global model, where it has one."""
    if deployed:
        write_adapter(folder / GLOBAL_ADAPTER, merge_folded(deployed), settings)


def own_model(
    engine: InProcess, algorithm: Algorithm, shared: Adapter, client: str, counted: int
) -> Personal:
    """A client's own model at the end; counted: no round after this one of the client's counted."""
    return algorithm.personal(shared, engine.state(client, counted))


def write_personal(own: Personal, engine: InProcess, client: str) -> None:
    """Write a client's own adapters into its folder."""
    mine = {
        PERSONAL_ADAPTER: rectification_adapter(own) if own.own else {},
        SMOOTHING_ADAPTER: unwrap_private(own.private),
    }
    for place, adapter in mine.items():
        if adapter:
            target = engine.store.client_folder(client) / place
            write_adapter(target, adapter, engine.bench.adapter_settings, private=True)


def judge_personal(own: Personal, engine: InProcess, client: str) -> Metrics:
    """How good a client's own model is; {} where the recipe does not ask."""
    bench, recipe = engine.bench, engine.recipe
    if not recipe.evaluate.personal or recipe.federation.pooled:
        return {}
    bench.use(own)
    return bench.evaluator.personal_model(client)


def finish_client(
    engine: InProcess, algorithm: Algorithm, shared: Adapter, client: str, counted: int
) -> Metrics:
    """Write a client's own adapters into its folder; returns how good its own model is.

    counted: no round after this one of the client's counted.
    """
    own = own_model(engine, algorithm, shared, client, counted)
    write_personal(own, engine, client)
    return judge_personal(own, engine, client)


def conclude_method(
    recipe: Recipe, folder: Path, deployed: Adapter, personal: Mapping[str, Metrics]
) -> dict[str, float]:
    """The final metrics of a method whose adapters are written.

    personal: what each client says of its own model, {} where that was not asked for.
    """
    rows = files.read_json_lines(folder / METRICS_FILE)
    # No global model: clients' own only. No "eval": clients tell no scores.
    result = dict(rows[-1].get("eval", {})) if deployed else {}
    result |= privacy_spent(recipe, rows)
    scores = finite_values(merge_all(personal.values()), recipe.federation.rounds)
    result |= {f"personal_{name}": score for name, score in scores.items()}
    judged = {client: metric_values(each) for client, each in personal.items() if each}
    files.write_json(folder / PERSONAL_FILE, judged)
    return result


def noise_secret(recipe: Recipe, folder: Path) -> bytes:
    """What noise is drawn from: a secret of this run that a resumed one finds again, or what
    everybody can derive from the recipe's `privacy.noise_seed`; empty where there is no privacy.

    Noise that is drawn anew for an update sent before would be a second release of it. Raises
    `UserError` for a file that holds no such secret.
    """
    if recipe.privacy.mode == "none":
        return b""
    if recipe.privacy.noise_seed is not None:
        return seeds.derive_secret(b"noise_seed", recipe.privacy.noise_seed)
    file = folder / NOISE_FILE
    if not file.exists():
        files.write_json(file, secrets.token_hex(seeds.SECRET_BYTES), private=True)
    text = files.read_json(file)
    if not (isinstance(text, str) and NOISE_SECRET.fullmatch(text)):
        raise UserError(
            f"{file} holds no secret of {seeds.SECRET_BYTES} bytes in hexadecimal digits (an "
            "older fedsdr wrote a number, from which the noise can be found): this run cannot "
            "go on; begin another one, in another folder"
        )
    return bytes.fromhex(text)


def pooled_recipe(recipe: Recipe, clients: int) -> Recipe:
    """Centralised training takes as many steps a round as all participants together."""
    steps = recipe.local.rectify_steps * cohort_size(clients, recipe.federation.participation)
    alone = {"federation.participation": 1.0, "federation.late": 0.0}
    return override_recipe(recipe, {"local.rectify_steps": steps, **alone})


def client_examples(
    bench: Workbench, recipe: Recipe, folder: Path, reporter: Reporter, cache: Path | None = None
) -> Mapping[str, Mapping[Targets, Sequence[Example]]]:
    """Each client's tokenised records by kind of target, rewritten first where a method asks.

    cache: the folder of the cache of rewrites, where that is not the user's common one.
    """
    raw = bench.raw
    if recipe.federation.pooled:
        return {
            pool_clients(bench.clients).name: {"raw": [e for each in raw.values() for e in each]}
        }
    if not recipe.federation.rewrites:
        return {client: {"raw": examples} for client, examples in raw.items()}
    rewrites = rewrite_all(bench, recipe, reporter, cache)
    record_distillation(folder, rewrites, recipe.seed)
    examples: dict[str, Mapping[Targets, Sequence[Example]]] = {}
    for client in bench.clients:
        mine, texts = raw[client.name], [r.text for r in rewrites[client.name]]
        distilled = bench.tokenise(client.name, client.train, texts)
        examples[client.name] = {
            "raw": mine, "distilled": distilled, "mixed": [*mine, *distilled],
        }  # fmt: skip
    return examples
