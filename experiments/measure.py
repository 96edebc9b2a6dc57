"""What evidence asks of a finished cell beyond its own metrics."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from experiments.real.measure import answer_scores, text_measures
from fedsdr.algorithms.contract import Personal
from fedsdr.core.adapters import Adapter
from fedsdr.core.client_names import client_folder_name
from fedsdr.core.layout import CLIENTS_FOLDER, PERSONAL_ADAPTER
from fedsdr.core.progress import silent_reporter
from fedsdr.data.example import Example
from fedsdr.diagnosis.gradients import client_gradients, pairwise_cosine
from fedsdr.diagnosis.transfer import loss_matrix, transfer_gap
from fedsdr.evaluate.loss import LossEvaluator
from fedsdr.federation.checkpoint import load_checkpoint
from fedsdr.federation.loaded import LoadedRun
from fedsdr.lab.evaluate import LabEvaluator
from fedsdr.lab.world import World
from fedsdr.model.install import first_adapter, install_model
from fedsdr.model.peft_format import read_adapter
from fedsdr.recipe.methods import Method
from fedsdr.training.store import ClientStore
from fedsdr.workflows.method import client_examples
from fedsdr.workflows.prepare import PreparedRun

EVIDENCE_FILE: Final = "evidence.json"
GRADIENT_RECORDS: Final = 96  # of each client
PRETRAINED_RECORDS: Final = 12  # the same on pretrained models
COMPARED: Final = ("fedavg", "fedsd")  # whose clients are compared on pretrained models, too

Examples = Mapping[str, Sequence[Example]]


def measure_cell(loaded: LoadedRun, prepared: PreparedRun, method: Method) -> dict[str, Any]:
    """Of a global model its answers, its response loss and its clients' gradients; of rewrites
    what they do to the texts; of clients that train alone how their models fare on each other's
    data."""
    committed = load_checkpoint(method.folder)
    assert committed is not None
    deployed = method.algorithm.deployed(committed[1])
    held_out = {c.name: loaded.tokenise(c.name, c.held_out) for c in loaded.clients}
    if not deployed:
        return _transfer(loaded, method, held_out)
    found = _judged(loaded, method, prepared, deployed, held_out)
    synthetic = isinstance(prepared.world, World)
    if synthetic or method.name in COMPARED:
        found |= _gradients(loaded, method, deployed)
    if not synthetic:
        found["model"] = dict(loaded.description)
    if not synthetic and method.name == "fedsd":
        store = ClientStore(method.folder / CLIENTS_FOLDER)
        found["texts"] = text_measures(loaded.clients, store)
    return found


def _judged(
    loaded: LoadedRun,
    method: Method,
    prepared: PreparedRun,
    deployed: Adapter,
    held_out: Examples,
) -> dict[str, Any]:
    world, rows = prepared.world, method.recipe.local.batch_size
    install_model(loaded.model, Personal(deployed))
    if world is None:  # the loss is among the metrics
        return {"scores": answer_scores(loaded)}
    loss = LossEvaluator(loaded.base.model, held_out, rows, loaded.base.pad)
    found: dict[str, Any] = {"response_loss": loss.global_model()["loss"].value}
    if isinstance(world, World):
        judge = LabEvaluator(loaded.base.model, loaded.base.chat, world)
        found["answers"] = [[each.true, len(each.text.split())] for each in judge.answers()]
    return found


def _gradients(loaded: LoadedRun, method: Method, deployed: Adapter) -> dict[str, float]:
    """Mean cosine between clients' gradients of R on what it learns from, at R^0 and at the end."""
    recipe = method.recipe
    if recipe.federation.pooled or len(loaded.clients) < 2:
        return {}
    found = client_examples(loaded, method, silent_reporter())
    learnt = recipe.federation.targets
    examples: Examples = {
        client: each["distilled" if learnt == "distilled" else "raw"]
        for client, each in found.items()
    }
    pad, batch = loaded.base.pad, recipe.local.batch_size
    limit = GRADIENT_RECORDS if recipe.uses_lab else PRETRAINED_RECORDS
    cosines = {}
    first = first_adapter(loaded.model, recipe.seed)
    for name, adapter in (("first", first), ("last", deployed)):
        gradients = client_gradients(loaded.model, examples, adapter, pad, batch, limit)
        cosines[f"gradients_{name}"] = pairwise_cosine(gradients).mean
    return cosines


def _transfer(loaded: LoadedRun, method: Method, held_out: Examples) -> dict[str, Any]:
    """Held-out loss of each client's own adapter on each client's records."""
    clients = method.folder / CLIENTS_FOLDER
    places = {name: clients / client_folder_name(name) / PERSONAL_ADAPTER for name in held_out}
    if not all(place.exists() for place in places.values()):
        return {}
    adapters = {name: read_adapter(place) for name, place in places.items()}
    rows = method.recipe.local.batch_size
    matrix = loss_matrix(loaded.model, held_out, adapters, loaded.base.pad, rows)
    return {"transfer": matrix, "transfer_gap": transfer_gap(matrix)}
