"""The model card: what a model is, how it was made, what it scored, how to load it.

It holds no text of any client and, unless asked, no client's name: counts and means alone. Under
differential privacy the clients' numbers of records are private too, and left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from fedsdr import __version__
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import (
    NOTICES_FILE,
    PARTITION_FILE,
    PERSONAL_FILE,
    RECIPE_FILE,
    RESULT_FILE,
    SUMMARY_FILE,
)
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.report import labels
from fedsdr.workflows.finished import Finished


@dataclass(frozen=True)
class Artefact:
    """The contents of the folder that the card describes.

    base: what adapter_config.json calls the base model. dtype: of the weights.
    ranks: smallest and largest rank of its layers. date: what its chat template prints as today's;
    "" for one that prints none.
    """

    model: str
    merged: bool
    base: str
    dtype: str
    ranks: tuple[int, int]
    scaling: float
    date: str = ""


def write_card(folder: Path, run: Finished, artefact: Artefact, client_names: bool) -> None:
    """README.md, with the front matter that the Hugging Face hub reads."""
    place, client = run.place(artefact.model)
    recipe = load_recipe(place / RECIPE_FILE)
    result, personal = (_known(place / name) for name in (RESULT_FILE, PERSONAL_FILE))
    noisy = recipe.privacy.mode != "none" and recipe.privacy.noise_multiplier > 0
    if noisy and "epsilon" not in result:
        raise UserError(
            f"{run.folder} has not come to its end, where its epsilon is known: go on with "
            f"fedsdr run ... --out {run.folder} --resume"
        )
    scores = personal.get(client, {}) if client else result
    partition = [] if run.recipe.privacy.mode != "none" else _partition(run.folder)
    method = next(name for name, each in run.methods.items() if each == place)
    text = _template().render(
        artefact=artefact,
        base_is_folder=is_folder(artefact.base),
        identity=run.base_identity(),
        method=labels.method_label(method),
        choices=method_choices(recipe),
        rounds=recipe.federation.rounds,
        notes=_notes(run.folder),
        lora=recipe.lora,
        client=client,
        named=client_names,
        partition=partition,
        clients=len(_partition(run.folder)),
        privacy=recipe.privacy,
        epsilon=result.get("epsilon"),
        whole=privacy_of_whole(run),
        metrics=_metrics(scores, bool(client), client_names),
        version=__version__,
    )
    files.write_text(folder / "README.md", text)


def privacy_of_whole(run: Finished) -> str:
    """The privacy loss of a client by all methods of a run (all seeds, where there are several), in
    words.

    "" without differential privacy.
    """
    folder = run.folder.resolve()
    summary, above = _known(folder / SUMMARY_FILE), _known(folder.parent / SUMMARY_FILE)
    places = [Path(place) for each in above.get("runs", {}).values() for place in each]
    whole = above if any(place.parts[:1] == (folder.name,) for place in places) else summary
    return str((whole.get("privacy") or {}).get("words", ""))


def _known(file: Path) -> dict[str, Any]:
    """A file that a run writes at its end; {} for an unfinished run."""
    return dict(files.read_json(file)) if file.is_file() else {}


def is_folder(base: str) -> bool:
    """Whether a base model's name is a path of one machine and not a name on a hub."""
    return base.startswith((".", "/", "~")) or Path(base).is_dir()


def method_choices(recipe: Recipe) -> dict[str, str]:
    """The method's main choices, by their keys."""
    federation, local, distill = recipe.federation, recipe.local, recipe.distill
    keys = ("algorithm", "lora_aggregation", "targets", "personalisation", "robust", "compression")
    chosen = {f"federation.{key}": str(getattr(federation, key)) for key in keys}
    chosen["federation.participation"] = str(federation.participation)
    mine = ["batch_size", "rectify_steps", "rectify_lr"]
    if federation.targets == "two_stream":
        mine += ["smooth_steps", "smooth_lr", "smoothing_state", "smoothing_context"]
        mine += ["rectify_alone", "rectify_targets", "smoothing_targets"]
        chosen = {"method": recipe.method} | chosen
    chosen |= {f"local.{key}": str(getattr(local, key)) for key in mine}
    if federation.rewrites and distill.contrast:
        chosen["distill.contrast"] = str(distill.contrast)
    if recipe.rehearsal.share:
        chosen["rehearsal.share"] = str(recipe.rehearsal.share)
    return chosen


def _partition(folder: Path) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = files.read_json(folder / PARTITION_FILE)
    return rows


def _notes(folder: Path) -> list[str]:
    """Notices of parts of the model that the run did not adapt."""
    file = folder / NOTICES_FILE
    rows = files.read_json(file) if file.exists() else []
    return [row["words"] for row in rows if row["kind"] == "frozen"]


def _metrics(
    scores: Mapping[str, float], personal: bool, client_names: bool
) -> list[tuple[labels.Metric, float]]:
    """The model's own scores: a client's by name only where names are asked for."""
    kept = {
        name: score
        for name, score in scores.items()
        if (client_names or "/" not in name)
        and not (labels.is_personal(name) and not personal)
        and name != "epsilon"
    }
    return [
        (labels.metric_label(n), kept[n]) for n in labels.ordered_names(kept, labels.METRIC_LABELS)
    ]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    text = (resources.files("fedsdr.export") / "templates" / "card.md.jinja").read_text("utf-8")
    return environment.from_string(text)
