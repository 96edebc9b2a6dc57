"""One method of a run, from the data of its clients to its adapters and final metrics.

Where its clients are makes no difference here: an engine trains them in this process
(`fedsdr.federation.in_process`) or asks them over a network (`fedsdr.deploy.server.engine`).
"""

import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from fedsdr.algorithms.aggregation.folding import merge_folded
from fedsdr.algorithms.contract import ServerState
from fedsdr.algorithms.participation import RoundOptions, cohort_size
from fedsdr.core import files, seeds
from fedsdr.core.adapters import Adapter
from fedsdr.core.errors import UserError
from fedsdr.core.layout import (
    DELIVERED_FILE,
    GLOBAL_ADAPTER,
    METRICS_FILE,
    NOISE_FILE,
    PERSONAL_FILE,
    RECIPE_FILE,
    RESULT_FILE,
)
from fedsdr.core.metrics import Metrics, merge_all, metric_values
from fedsdr.core.progress import Reporter
from fedsdr.data.example import Example, ExampleKind
from fedsdr.data.partition import pool_clients
from fedsdr.data.records import ClientData
from fedsdr.federation.in_process import Examples, InProcessEngine
from fedsdr.federation.loaded import LoadedRun
from fedsdr.federation.rounds import (
    Engine,
    Evaluation,
    Observer,
    Periodic,
    RoundHooks,
    finite_values,
    ignore_row,
    run_rounds,
)
from fedsdr.model.peft_format import AdapterSettings, write_adapter
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.load import to_toml
from fedsdr.recipe.methods import Method
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.follow import Follower
from fedsdr.workflows.distill import record_distillation, rewrite_all
from fedsdr.workflows.privacy_loss import privacy_spent
from fedsdr.workflows.rehearse import rehearse_all

NOISE_SECRET: Final = re.compile(rf"[0-9a-f]{{{2 * seeds.SECRET_BYTES}}}")


class MethodEngine(Engine, Protocol):
    """An engine for one method, with what comes before and after the rounds.

    method: as this engine trains it. settings: what PEFT must know of its adapters. quorum: as of
    `RoundOptions`. evaluate, benchmark: as of `RoundHooks`.
    """

    method: Method

    @property
    def quorum(self) -> int | None: ...

    @property
    def settings(self) -> AdapterSettings: ...

    @property
    def evaluate(self) -> Evaluation | None: ...

    @property
    def benchmark(self) -> Periodic | None: ...

    def first_adapter(self) -> Adapter:
        """R^0."""
        ...

    def observe(self, row: Mapping[str, Any]) -> None:
        """A line of the log has been committed."""
        ...

    def deliver(self, shared: Adapter) -> None:
        """All rounds are done: write clients' own adapters here, if this is where they lie."""
        ...

    def finish(self, shared: Adapter) -> Mapping[str, Metrics]:
        """Metrics of each client's own model, where there are any. shared: the last broadcast."""
        ...


OpenEngine = Callable[[Method, bytes], MethodEngine]  # of a method and the secret of its noise


def train_method(
    method: Method,
    open_engine: OpenEngine,
    reporter: Reporter,
    follower: Follower,
    watch: Observer = ignore_row,
) -> None:
    """One method from start or checkpoint to its result; a finished one is left alone.

    watch: observes the committed lines of the log, after the follower.
    """
    folder = method.folder
    if (folder / RESULT_FILE).exists():
        return
    files.write_text(folder / RECIPE_FILE, to_toml(method.recipe))
    secret = noise_secret(method)
    engine = open_engine(method, secret)
    method = engine.method
    algorithm, options = method.algorithm, round_options(method, secret, engine.quorum)

    def deliver(state: ServerState) -> None:
        write_global(folder, algorithm.deployed(state), engine.settings)
        engine.deliver(algorithm.broadcast(state))
        files.write_json(folder / DELIVERED_FILE, {"rounds": options.rounds})

    with follower:

        def observe(row: Mapping[str, Any]) -> None:
            engine.observe(row)
            follower.row(row)
            watch(row)

        hooks = RoundHooks(engine.evaluate, engine.benchmark, observe, deliver)
        state = run_rounds(method, engine, engine.first_adapter(), options, reporter, hooks)
        personal = engine.finish(algorithm.broadcast(state))
        result = conclude_method(method, algorithm.deployed(state), personal)
        follower.final(result)
    files.write_json(folder / RESULT_FILE, result)


def engine_in_process(loaded: LoadedRun, reporter: Reporter) -> OpenEngine:
    """Engines that train all clients here, their records rewritten where the method asks."""

    def open_engine(method: Method, secret: bytes) -> InProcessEngine:
        if method.recipe.federation.pooled:
            method = pooled_method(method, len(loaded.clients))
        examples = client_examples(loaded, method, reporter)
        return InProcessEngine(loaded, method, examples, reporter, secret)

    return open_engine


def round_options(method: Method, secret: bytes, quorum: int | None = None) -> RoundOptions:
    recipe, federation = method.recipe, method.recipe.federation
    return RoundOptions(
        recipe.seed, federation.rounds, federation.participation, recipe.evaluate.every, secret,
        federation.late, federation.late_round, quorum,
    )  # fmt: skip


def write_global(folder: Path, deployed: Adapter, settings: AdapterSettings) -> None:
    """Write the adapter of a method's global model, where it has one."""
    if deployed:
        write_adapter(folder / GLOBAL_ADAPTER, merge_folded(deployed), settings)


def conclude_method(
    method: Method, deployed: Adapter, personal: Mapping[str, Metrics]
) -> dict[str, float]:
    """The final metrics of a method whose adapters are written.

    personal: of each client's own model, {} where that was not asked for.
    """
    recipe, rows = method.recipe, files.read_json_lines(method.folder / METRICS_FILE)
    # No global model: clients' own only. No "eval": clients send no scores.
    result = dict(rows[-1].get("eval", {})) if deployed else {}
    result |= privacy_spent(recipe, rows)
    scores = finite_values(merge_all(personal.values()), recipe.federation.rounds)
    result |= {f"personal_{name}": score for name, score in scores.items()}
    judged = {client: metric_values(each) for client, each in personal.items() if each}
    files.write_json(method.folder / PERSONAL_FILE, judged)
    return result


def noise_secret(method: Method) -> bytes:
    """What noise is drawn from: a secret in the method's folder that a resumed run finds again, or
    one that follows from the recipe's `privacy.noise_seed`; empty where there is no privacy.

    Noise that is drawn anew for an update sent before would be a second release of it. Raises
    `UserError` for a file that holds no such secret.
    """
    recipe = method.recipe
    if recipe.privacy.mode == "none":
        return b""
    if recipe.privacy.noise_seed is not None:
        return seeds.derive_secret(b"noise_seed", recipe.privacy.noise_seed)
    file = method.folder / NOISE_FILE
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


def pooled_method(method: Method, clients: int) -> Method:
    """Centralised training: one client takes as many steps a round as all participants together."""
    recipe = method.recipe
    steps = recipe.local.rectify_steps * cohort_size(clients, recipe.federation.participation)
    alone = recipe.federation.model_copy(update={"participation": 1.0, "late": 0.0})
    local = recipe.local.model_copy(update={"rectify_steps": steps})
    pooled = recipe.model_copy(update={"local": local, "federation": alone})
    return replace(method, recipe=pooled, algorithm=build_algorithm(pooled))


def client_examples(
    loaded: LoadedRun, method: Method, reporter: Reporter, cache: Path | None = None
) -> Examples:
    """Each client's tokenised records by kind of target, rewritten first where a method asks, and
    what they rehearse.

    cache: the folder of the cache of rewrites, where that is not the user's common one.
    """
    if not method.recipe.rehearses:
        return _own_examples(loaded, method, reporter, cache)
    # First what takes less time, and fails where a base model writes no prompts.
    rehearsed = rehearse_all(loaded, method, reporter, cache)
    own = _own_examples(loaded, method, reporter, cache)
    return {client: {**kinds, "rehearsed": rehearsed} for client, kinds in own.items()}


def _own_examples(
    loaded: LoadedRun, method: Method, reporter: Reporter, cache: Path | None
) -> Examples:
    recipe, federation = method.recipe, method.recipe.federation
    if not federation.rewrites:
        raw = {client.name: _raw_examples(loaded, client, recipe) for client in loaded.clients}
        if federation.pooled:
            together = [example for examples in raw.values() for example in examples]
            return {pool_clients(loaded.clients).name: {"raw": together}}
        return {client: {"raw": examples} for client, examples in raw.items()}
    rewrites = rewrite_all(loaded, method, reporter, cache)
    record_distillation(method, rewrites)
    teacher = recipe.distill if recipe.has_teacher else None
    examples: dict[str, Mapping[ExampleKind, Sequence[Example]]] = {}
    for client in loaded.clients:
        done = rewrites[client.name]
        refused = {i for i, rewritten in enumerate(done) if rewritten.reason}
        texts = [rewritten.text for rewritten in done]
        distilled = loaded.tokenise(client.name, client.train, texts, teacher, refused)
        mine = _raw_examples(loaded, client, recipe, refused)
        examples[client.name] = {
            "raw": mine, "distilled": distilled, "mixed": [*mine, *distilled],
        }  # fmt: skip
    return examples


def _raw_examples(
    loaded: LoadedRun, client: ClientData, recipe: Recipe, refused: Collection[int] = ()
) -> Sequence[Example]:
    """A client's raw responses, with references where a loss needs them; a record that is
    `refused`, whose rewrite the gate did not accept, has none."""
    if not recipe.has_teacher:
        return loaded.raw[client.name]
    return loaded.tokenise(client.name, client.train, None, recipe.distill, refused)
