"""Finished cells on a pretrained model with made-up numbers."""

from pathlib import Path
from typing import Any

from experiments.measure import EVIDENCE_FILE
from experiments.plan import Cell
from experiments.real.plan import DOMAINS_FILE
from experiments.runner import cell_folder
from fedsdr.core import files
from fedsdr.core.layout import DISTILLATION_FILE, METRICS_FILE, RECIPE_FILE, RESULT_FILE
from fedsdr.recipe.load import to_toml

MODEL = {"parameters": 134515008, "dtype": "float32", "device": "cpu"}
CLIENTS = ("general", "code", "finance", "medicine", "math")
ENGLISH_SCORES = (
    "client_facts", "changed_facts", "general", "general_kept", "hallucination", "inventions",
    "refusals", "house_style", "length",
)  # fmt: skip
MEASURES = ("js", "thinned js", "tfidf_cosine", "thinned tfidf_cosine", "words", "filler")


def write_cell(out: Path, cell: Cell, seed: int, number: float) -> Path:
    """A finished cell all of whose metrics are `number`, but for the base model's 10."""
    folder = cell_folder(out, cell, seed)
    recipe = cell.recipe(seed)
    domains = cell.base == DOMAINS_FILE
    losses = [f"loss/{client}" for client in CLIENTS]
    names = ["loss", *losses, "arc_easy", "piqa"] if domains else ENGLISH_SCORES
    scores = dict.fromkeys(names, number)
    own = {f"personal_{name}": number + 1 for name in names} if recipe.evaluate.personal else {}
    alone = cell.method == "local"
    files.write_text(folder / RECIPE_FILE, to_toml(recipe))
    files.write_json(folder / RESULT_FILE, own if alone else scores | own)
    rows = [{"round": 0, "eval": dict.fromkeys(names, 10.0)}, {"round": 5, "eval": scores}]
    files.write_json_lines(folder / METRICS_FILE, rows)
    client = {
        "records": 24, "rewritten": 12, "checked": 4, "wrong": 0.25, "raw_words": 5.0,
        "rewrite_words": 14.0, "inventions": 3,
    }  # fmt: skip
    pairs = [{"instruction": "a client's own question"}]
    files.write_json(folder / DISTILLATION_FILE, {"clients": {"finance": client}, "pairs": pairs})
    files.write_json(folder / EVIDENCE_FILE, _extra(number, domains, alone))
    return folder


def _extra(number: float, domains: bool, alone: bool) -> dict[str, Any]:
    if alone:
        return {"transfer_gap": 0.3, "seconds": 1.0}
    each = {f"{name}/{c}": number for name in ("refusals", "words") for c in CLIENTS}
    marks = {"accuracy/finance": number, "accuracy/math": number}
    scores = {"refusals": number, "words": number, **each, **marks}
    return {
        "model": MODEL,
        "gradients_first": 0.1,
        "gradients_last": number / 100,
        "texts": {measure: [0.5, number / 100] for measure in MEASURES},
        **({"scores": scores} if domains else {"response_loss": number}),
        "seconds": 1.0,
    }
