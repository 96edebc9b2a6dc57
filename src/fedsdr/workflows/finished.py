"""Finished runs, opened again: one base model, and the adapters of every model that a run made.

What evaluates, judges, exports or talks to a model after training starts here. Models are named
by texts: "base"; "global" and "client:NAME", of the run's own method; "METHOD" and
"METHOD/client:NAME", of one of its baselines.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedsdr.core import files
from fedsdr.core.adapters import Adapter
from fedsdr.core.client_names import client_folder_name, client_of_folder
from fedsdr.core.errors import UserError
from fedsdr.core.layout import (
    CLIENTS_FOLDER,
    DELIVERED_FILE,
    ENVIRONMENT_FILE,
    GLOBAL_ADAPTER,
    PERSONAL_ADAPTER,
    RECIPE_FILE,
    RESULT_FILE,
    SMOOTHING_ADAPTER,
)
from fedsdr.core.progress import Reporter
from fedsdr.model.base import LoadedModel
from fedsdr.model.identity import FORMAT, Identity, adapted_identity, differing_parts
from fedsdr.model.install import install_streams
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.peft_format import WEIGHTS, read_adapter
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.methods import method_folders
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.prepare import base_of

BASE_MODEL: Final = "base"
GLOBAL_MODEL: Final = "global"
CLIENT_PREFIX: Final = "client:"


@dataclass(frozen=True)
class Finished:
    """A run folder whose methods are trained, before any model is loaded.

    methods: name -> folder, the run's own method last.
    """

    folder: Path
    recipe: Recipe
    methods: dict[str, Path] = field(default_factory=dict)

    @property
    def own(self) -> str:
        """The name of the run's own method."""
        return list(self.methods)[-1]

    def model_names(self) -> list[str]:
        """All models of this run, the base first, then method by method."""
        names = [BASE_MODEL]
        for method, folder in self.methods.items():
            own = method == self.own
            if (
                method != BASE_MODEL and (folder / GLOBAL_ADAPTER / WEIGHTS).exists()
            ):  # a baseline, too
                names.append(GLOBAL_MODEL if own else method)
            names += [
                CLIENT_PREFIX + c if own else f"{method}/{CLIENT_PREFIX}{c}"
                for c in personal_clients(folder)
            ]
        return names

    def check(self, name: str) -> None:
        """Raise `UserError` where there is no model of this name."""
        if name not in (names := self.model_names()):
            raise UserError(f"{self.folder} has no model {name!r}: choose from {', '.join(names)}")

    def place(self, name: str) -> tuple[Path, str]:
        """The folder of a trained model's method, and its client ("" for a global model)."""
        self.check(name)
        assert name != BASE_MODEL, "the base model belongs to no method"
        method, is_client, client = name.partition(CLIENT_PREFIX)
        method = method.rstrip("/") if is_client else name
        return self.methods.get(method, self.methods[self.own]), client if is_client else ""

    def adapter_folders(self, name: str) -> dict[Stream, Path]:
        """Where the adapters lie that make the base model into the one called `name`."""
        if name == BASE_MODEL:
            return {}
        folder, client = self.place(name)
        places = {Stream.RECTIFY: folder / GLOBAL_ADAPTER}
        if client:
            mine = folder / CLIENTS_FOLDER / client_folder_name(client)
            places[Stream.SMOOTH] = mine / SMOOTHING_ADAPTER
            if (mine / PERSONAL_ADAPTER / WEIGHTS).exists():
                places[Stream.RECTIFY] = mine / PERSONAL_ADAPTER
        return {stream: p for stream, p in places.items() if (p / WEIGHTS).exists()}

    def adapters(self, name: str) -> dict[Stream, Adapter]:
        """The adapters that make the base model into the one called `name`."""
        return {stream: read_adapter(p) for stream, p in self.adapter_folders(name).items()}

    def base_identity(self) -> Identity:
        """What the run's base model was; {} for a run that did not note it."""
        path = self.folder / ENVIRONMENT_FILE
        return dict(files.read_json(path).get("identity", {})) if path.exists() else {}

    def identity(self, name: str, base: Identity) -> Identity:
        """Of the model called `name`, made from that base."""
        lora = self.recipe.lora
        return adapted_identity(base, self.adapters(name), lora.alpha / lora.rank)

    def check_base(self, found: Identity, reporter: Reporter) -> None:
        """Raise `UserError` where what is found now is not of the model that the run was made with.

        On another device "auto" may be another dtype: the weights cannot be compared then.
        """
        known = {part: it for part, it in self.base_identity().items() if part in found}
        parts = differing_parts(known, found)
        if "dtype" in parts:
            here, there = found["dtype"], known["dtype"]
            reporter.say(f"the base model is {here} here, and was {there} in {self.folder}")
            parts = [part for part in parts if part not in ("weights", *FORMAT)]
        if parts:
            raise UserError(
                f"the base model has changed since {self.folder} was run, in its "
                f"{', '.join(parts)}: put back the model and the template that it was run with"
            )


def personal_clients(folder: Path) -> list[str]:
    """The clients of a method's folder that have a model of their own."""
    clients = sorted(path for path in (folder / CLIENTS_FOLDER).glob("*") if path.is_dir())
    kinds = (SMOOTHING_ADAPTER, PERSONAL_ADAPTER)
    held = [c for c in clients if any((c / kind / WEIGHTS).exists() for kind in kinds)]
    return [client_of_folder(folder) for folder in held]


def is_trained(folder: Path) -> bool:
    """Whether all adapters of a method are there: its evaluation need not be, and may have
    failed."""
    return (folder / DELIVERED_FILE).exists() or (folder / RESULT_FILE).exists()


def open_finished(folder: Path) -> Finished:
    """Read what a trained run holds. Raises `UserError` for anything but a trained run."""
    if not (folder / RECIPE_FILE).is_file():
        raise UserError(f"{folder} is not a run folder: it has no {RECIPE_FILE}")
    recipe = load_recipe(folder / RECIPE_FILE)
    if seeds := sorted(path.name for path in folder.glob("seed-*")):
        raise UserError(
            f"{folder} is a comparison of several runs: give one of them, {folder / seeds[0]} say"
        )
    methods = method_folders(recipe, folder)
    if waiting := [name for name, place in methods.items() if not is_trained(place)]:
        raise UserError(
            f"{folder} is not finished ({waiting[0]!r} is not): go on with "
            f"fedsdr run ... --out {folder} --resume"
        )
    return Finished(folder, recipe, methods)


def open_base(run: Finished, reporter: Reporter) -> LoadedModel:
    """The base model that a run was made with. Raises `UserError` where it is another one now."""
    base = base_of(run.recipe, reporter)
    run.check_base(base.identity, reporter)
    return base


class Models:
    """The models of a finished run in one process: a base model and the adapters put into it."""

    def __init__(self, run: Finished, reporter: Reporter) -> None:
        """Load the base model with the run's streams, all of them off."""
        self.run = run
        self.base = open_base(run, reporter)
        lora = run.recipe.lora
        self.streams = TwoStreamModel(
            self.base.model, lora.targets, lora.rank, lora.alpha, lora.layers
        )
        self._identities: dict[str, Identity] = {}  # each reads and digests a model's adapters

    def names(self) -> list[str]:
        """All that `use` takes."""
        return self.run.model_names()

    def identity(self, name: str) -> Identity:
        """Of the model called `name`, by its content."""
        if name not in self._identities:
            self._identities[name] = self.run.identity(name, self.base.identity)
        return self._identities[name]

    def use(self, name: str) -> None:
        """Make `base.model` the model called `name`."""
        install_streams(self.streams, self.run.adapters(name))
