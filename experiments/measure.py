"""What evidence asks of a finished cell beyond its own metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.algorithms.contract import Personal
from fedsdr.core.adapters import Adapter
from fedsdr.core.layout import CLIENTS_FOLDER, PERSONAL_ADAPTER
from fedsdr.core.progress import silent_reporter
from fedsdr.data.template import Example
from fedsdr.diagnosis.gradients import client_gradients, pairwise_cosine
from fedsdr.diagnosis.transfer import loss_matrix, transfer_gap
from fedsdr.evaluate.loss import LossEvaluator
from fedsdr.federation.checkpoint import load_checkpoint
from fedsdr.federation.workbench import Workbench
from fedsdr.lab.evaluate import LabEvaluator
from fedsdr.model.peft_format import read_adapter
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.method import client_examples
from fedsdr.workflows.prepare import Setting

EVIDENCE_FILE = "evidence.json"
GRADIENT_RECORDS = 96  # of each client

Examples = Mapping[str, Sequence[Example]]


def measure_cell(
    bench: Workbench, setting: Setting, recipe: Recipe, folder: Path
) -> dict[str, Any]:
    """Of a global model its answers, its response loss and its clients' gradients; of clients
    that train alone how their models fare on each other's data."""
    committed = load_checkpoint(folder)
    assert committed is not None
    deployed = build_algorithm(recipe).deployed(committed[1])
    held_out = {c.name: bench.tokenise(c.name, c.held_out) for c in bench.clients}
    if not deployed:
        return _transfer(bench, recipe, folder, held_out)
    return {
        **_judged(bench, setting, recipe, deployed, held_out),
        **_gradients(bench, recipe, folder, deployed),
    }


def _judged(
    bench: Workbench, setting: Setting, recipe: Recipe, deployed: Adapter, held_out: Examples
) -> dict[str, Any]:
    assert setting.world is not None
    bench.use(Personal(deployed))
    judge = LabEvaluator(bench.base.model, bench.base.chat, setting.world)
    loss = LossEvaluator(bench.base.model, held_out, recipe.local.batch_size, bench.base.pad)
    return {
        "answers": [[answer.true, len(answer.text.split())] for answer in judge.answers()],
        "response_loss": loss.global_model()["loss"].value,
    }


def _gradients(
    bench: Workbench, recipe: Recipe, folder: Path, deployed: Adapter
) -> dict[str, float]:
    """Mean cosine between clients' gradients of R on what it learns from, at R^0 and at the end."""
    if recipe.federation.pooled or len(bench.clients) < 2:
        return {}
    found = client_examples(bench, recipe, folder, silent_reporter())
    learnt = recipe.federation.targets
    examples: Examples = {
        client: each["distilled" if learnt == "distilled" else "raw"]
        for client, each in found.items()
    }
    pad, batch = bench.base.pad, recipe.local.batch_size
    cosines = {}
    for name, adapter in (("first", bench.first_adapter(recipe.seed)), ("last", deployed)):
        gradients = client_gradients(bench.model, examples, adapter, pad, batch, GRADIENT_RECORDS)
        cosines[f"gradients_{name}"] = pairwise_cosine(gradients).mean
    return cosines


def _transfer(bench: Workbench, recipe: Recipe, folder: Path, held_out: Examples) -> dict[str, Any]:
    """Held-out loss of each client's own adapter on each client's records."""
    places = {name: folder / CLIENTS_FOLDER / name / PERSONAL_ADAPTER for name in held_out}
    if not all(place.exists() for place in places.values()):
        return {}
    adapters = {name: read_adapter(place) for name, place in places.items()}
    matrix = loss_matrix(bench.model, held_out, adapters, bench.base.pad, recipe.local.batch_size)
    return {"transfer": matrix, "transfer_gap": transfer_gap(matrix)}
