"""The server's side: the round loop of a run in one process, over a line to the clients.

It holds no data and no weights: the model's configuration says what shape adapters have, clients
judge the global model by what they held out. A run that was cut off at any point goes on from its
folder.
"""

import secrets
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from fedsdr.algorithms.contract import ServerState
from fedsdr.core import files, seeds
from fedsdr.core.adapters import fresh_adapter
from fedsdr.core.environment import describe_environment
from fedsdr.core.errors import UserError
from fedsdr.core.layout import (
    DELIVERED_FILE,
    ENVIRONMENT_FILE,
    PARTITION_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    RESULT_FILE,
    SUMMARY_FILE,
)
from fedsdr.core.progress import Reporter
from fedsdr.deploy.protocol.egress import allowed_contents
from fedsdr.deploy.protocol.signing import SignatureVerifier, Signer
from fedsdr.deploy.server.admission import Admission, AdmittedRun, Link
from fedsdr.deploy.server.engine import Remote
from fedsdr.deploy.server.switchboard import Switchboard
from fedsdr.federation.rounds import run_rounds
from fedsdr.model.identity import Identity
from fedsdr.model.lora import TwoStreamModel
from fedsdr.model.outline import model_outline
from fedsdr.model.peft_format import settings_of
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.load import to_toml
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.follow import Follower, tracked_method
from fedsdr.tracking.table import choose_backends
from fedsdr.workflows.method import conclude_method, noise_secret, round_options, write_global
from fedsdr.workflows.prepare import check_clients, check_methods, methods_of, plan_folder
from fedsdr.workflows.privacy_loss import UNJUDGED
from fedsdr.workflows.run_folder import check_folder, claim_folder, claimed_folder, method_folders
from fedsdr.workflows.summary import summarise_runs

RUN_FILE: Final = "run.json"  # the run's name, by which clients know it after a restart


def serve_federation(
    recipe: Recipe,
    out: Path,
    link: Link,
    roster: Mapping[str, SignatureVerifier],
    reporter: Reporter,
    key: Signer,
    pause: float = 0.5,
) -> dict[str, Any]:
    """Run a recipe with the clients of `roster` into `out`, or go on there; returns the summary.

    Raises `UserError` before any message is sent where recipe, roster or folder are wrong.
    """
    check_served(recipe, list(roster))
    check_folder(out, recipe, resume=True)
    if (out / REPORT_FILE).exists():
        return dict(files.read_json(out / SUMMARY_FILE))
    with claimed_folder(out, recipe, resume=True):
        began, begun = time.perf_counter(), (out / RECIPE_FILE).exists()
        shape = Shape(recipe, reporter)
        claim_folder(out, recipe)
        admission = Admission(link, recipe, known_run(out), roster, reporter, key, pause)
        admission.model = known_model(out)
        deployment = recipe.deployment
        admission.connect(min(deployment.min_clients, len(roster)), deployment.wait_seconds)
        record_federation(out, recipe, admission)
        board, backends = Switchboard(admission), choose_backends(recipe.tracking.backends)
        for name, folder, each in method_folders(recipe, out):
            follower = Follower(
                backends, tracked_method(each, out.name, name, out, folder), reporter
            )
            serve_method(board, shape, each, folder, name, reporter, follower)
        return summarise_runs([recipe.seed], [out], out, time.perf_counter() - began, begun)


def check_served(recipe: Recipe, clients: list[str]) -> None:
    """Raise `UserError` for what cannot be done without the clients' data."""
    check_methods(recipe)
    if not clients:
        raise UserError("the roster names no client")
    if recipe.evaluate.benchmarks:
        raise UserError(
            "evaluate.benchmarks needs a model at the server, which has none: remove it, and run "
            "`fedsdr eval` on the finished run"
        )
    if any(each.federation.pooled for each in methods_of(recipe)):
        raise UserError("'central' pools everybody's data, which stay where they are: remove it")
    check_clients(recipe, clients)


def known_run(out: Path) -> AdmittedRun:
    """The run in a folder; its name is drawn when it is begun."""
    path = out / RUN_FILE
    if not path.exists():
        began = time.time_ns() // 10**6
        files.write_json(path, {"run": secrets.token_hex(16), "began": began})
    told = files.read_json(path)
    return AdmittedRun(
        str(told["run"]), int(told.get("began", 0))
    )  # 0: of a folder before there was one


def known_model(out: Path) -> Identity:
    """The base model that a run began on; {} for one that is to begin."""
    file = out / ENVIRONMENT_FILE
    found = files.read_json(file) if file.exists() else {"identity": {}}
    # Earlier versions noted the weights alone.
    return dict(found["identity"]) if "identity" in found else {"weights": str(found["data"])}


def record_federation(out: Path, recipe: Recipe, admission: Admission) -> None:
    """Note what the run begins on; clients with another base model are turned away for good."""
    file = out / ENVIRONMENT_FILE
    if file.exists():
        return
    files.write_json(out / PARTITION_FILE, [{"name": client} for client in admission.roster])
    described = describe_environment(recipe.seed)
    files.write_json(file, described | {"identity": dict(admission.model)})


class Shape:
    """What a server must know of the model: the shape of its adapters, none of its weights."""

    def __init__(self, recipe: Recipe, reporter: Reporter) -> None:
        lora = recipe.lora
        with plan_folder(recipe, reporter) as folder:
            model = TwoStreamModel(
                model_outline(folder), lora.targets, lora.rank, lora.alpha, lora.layers
            )
        self.first = fresh_adapter(
            model.blank(), seeds.seeded_generator(recipe.seed, "first adapter")
        )
        self.settings = settings_of(model, recipe.model.path, lora.dropout)


def serve_method(
    board: Switchboard,
    shape: Shape,
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
    engine = Remote(board, recipe, name, reporter, folder)
    evaluate = engine.evaluate if allowed_contents("evaluate", recipe).metrics else None
    if evaluate is None:
        reporter.say(f"{name}: {UNJUDGED.format(recipe.privacy.mode)}")
    reporter.say(f"{name}: clients prepare their data")
    engine.prepare()
    secret = noise_secret(recipe, folder)
    options = round_options(recipe, secret, recipe.deployment.min_clients)
    algorithm = build_algorithm(recipe, recipe.deployment.max_norm)
    with follower or nullcontext() as tracking:

        def deliver(state: ServerState) -> None:
            write_global(folder, algorithm.deployed(state), shape.settings)
            files.write_json(folder / DELIVERED_FILE, {"rounds": options.rounds})

        def observe(row: Mapping[str, Any]) -> None:
            engine.count(row)
            if tracking:
                tracking.row(row)

        state = run_rounds(
            algorithm, engine, shape.first, options, evaluate, folder,
            reporter, name, observe, None, deliver,
        )  # fmt: skip
        personal = engine.finish(algorithm.broadcast(state))
        result = conclude_method(recipe, folder, algorithm.deployed(state), personal)
        if tracking:
            tracking.final(result)
    files.write_json(folder / RESULT_FILE, result)
