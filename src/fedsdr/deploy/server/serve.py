"""The server's side: the round loop of a run in one process, over a line to the clients.

It holds no data and no weights: the model's configuration says what shape adapters have, clients
judge the global model by what they held out. A run that was cut off at any point goes on from its
folder.
"""

import secrets
import time
from pathlib import Path
from typing import Any, Final

from fedsdr.core import files
from fedsdr.core.environment import describe_environment
from fedsdr.core.errors import UserError
from fedsdr.core.layout import ENVIRONMENT_FILE, PARTITION_FILE, SUMMARY_FILE
from fedsdr.core.progress import Reporter
from fedsdr.deploy.server.admission import Admission, AdmittedRun, ServerConnection
from fedsdr.deploy.server.dispatcher import RequestDispatcher
from fedsdr.deploy.server.engine import AdapterShape, RemoteEngine, adapter_shape
from fedsdr.model.identity import Identity
from fedsdr.recipe.methods import Method, resolve_methods
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.tracking.table import choose_backends
from fedsdr.workflows.method import OpenEngine
from fedsdr.workflows.prepare import check_clients
from fedsdr.workflows.privacy_loss import UNJUDGED
from fedsdr.workflows.run import run_methods
from fedsdr.workflows.run_folder import check_folder, claim_folder
from fedsdr.workflows.summary import is_summarised

RUN_FILE: Final = "run.json"  # the run's name, by which clients know it after a restart


def serve_federation(
    recipe: Recipe, out: Path, connection: ServerConnection, reporter: Reporter
) -> dict[str, Any]:
    """Run a recipe with the clients of a roster into `out`, or go on there; returns the summary.

    Raises `UserError` before any message is sent where recipe, roster or folder are wrong.
    """
    methods = check_served(recipe, list(connection.roster))
    check_folder(out, recipe, resume=True)
    if is_summarised(out):
        return dict(files.read_json(out / SUMMARY_FILE))

    def start() -> OpenEngine:
        shape = adapter_shape(recipe, reporter)
        claim_folder(out, recipe)
        admission = Admission(connection, recipe, known_run(out), reporter)
        admission.model = known_model(out)
        deployment = recipe.deployment
        admission.connect(
            min(deployment.min_clients, len(connection.roster)), deployment.wait_seconds
        )
        record_federation(out, recipe, admission)
        return engine_across_sites(RequestDispatcher(admission, methods), shape, reporter)

    return run_methods(methods, out, start, reporter, resume=True)


def engine_across_sites(
    dispatcher: RequestDispatcher, shape: AdapterShape, reporter: Reporter
) -> OpenEngine:
    """Engines that ask clients at their sites, each of which has prepared its data."""

    def open_engine(method: Method, secret: bytes) -> RemoteEngine:
        """secret: of the server's noise alone; clients have their own."""
        engine = RemoteEngine(dispatcher, method, shape, reporter)
        if engine.evaluate is None:
            reporter.say(f"{method.name}: {UNJUDGED.format(method.recipe.privacy.mode)}")
        reporter.say(f"{method.name}: clients prepare their data")
        engine.prepare()
        return engine

    return open_engine


def check_served(recipe: Recipe, clients: list[str]) -> tuple[Method, ...]:
    """The methods of a recipe that is run across organisations.

    Raises `UserError` for what cannot be done without the clients' data.
    """
    methods = resolve_methods(recipe, recipe.deployment.max_norm)
    choose_backends(recipe.tracking.backends)
    if not clients:
        raise UserError("the roster names no client")
    if recipe.evaluate.benchmarks:
        raise UserError(
            "evaluate.benchmarks needs a model at the server, which has none: remove it, and run "
            "`fedsdr eval` on the finished run"
        )
    if any(method.recipe.federation.pooled for method in methods):
        raise UserError("'central' pools everybody's data, which stay where they are: remove it")
    check_clients(methods, clients)
    return methods


def known_run(out: Path) -> AdmittedRun:
    """The run in a folder; its name is drawn when it is begun."""
    path = out / RUN_FILE
    if not path.exists():
        began = time.time_ns() // 10**6
        files.write_json(path, {"run": secrets.token_hex(16), "began": began})
    noted = files.read_json(path)
    # Earlier versions noted no beginning.
    return AdmittedRun(str(noted["run"]), int(noted.get("began", 0)))


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
