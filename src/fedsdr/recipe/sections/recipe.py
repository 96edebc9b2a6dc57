"""The whole recipe."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from fedsdr.recipe.sections.base import Section
from fedsdr.recipe.sections.data import Data, Lab
from fedsdr.recipe.sections.deployment import Deployment
from fedsdr.recipe.sections.distill import Distill
from fedsdr.recipe.sections.evaluate import Evaluate, Tracking
from fedsdr.recipe.sections.federation import FederationSection, Privacy
from fedsdr.recipe.sections.local import Local
from fedsdr.recipe.sections.model import Lora, Model

VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=100)]


class Recipe(Section):
    """A whole run. `baselines` are methods that run before the recipe's own, each into
    `baselines/NAME` of the run folder: names of `fedsdr.recipe.methods.NAMED_METHODS`, or of
    `variants`, which are the recipe's own method with some keys changed. `options` are those of the
    names chosen in `[federation]`, here or by a baseline: `[options.fedprox]`, say."""

    seed: int = 0
    baselines: tuple[str, ...] = ()
    variants: dict[VariantName, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    model: Model
    lora: Lora = Lora()
    data: Data = Data()
    lab: Lab = Lab()
    distill: Distill = Distill()
    federation: FederationSection = FederationSection()
    privacy: Privacy = Privacy()
    local: Local = Local()
    evaluate: Evaluate = Evaluate()
    tracking: Tracking = Tracking()
    deployment: Deployment = Deployment()

    @property
    def uses_lab(self) -> bool:
        return self.model.path == "lab"

    @property
    def dtype(self) -> str:
        """`model.dtype`; the lab's numbers are float32's on any device, unless one is asked for."""
        return "float32" if self.uses_lab and self.model.dtype == "auto" else self.model.dtype

    @model_validator(mode="after")
    def _clipped_updates_are_taken(self) -> "Recipe":
        clip, most = self.privacy.clip, self.deployment.max_norm
        if self.privacy.mode == "central" and most < 2 * clip:  # rounding makes updates longer
            raise ValueError(
                f"deployment.max_norm = {most:g} would refuse updates that privacy.clip = {clip:g} "
                "allows, by what is private of them: set max_norm to twice the clip or more"
            )
        return self

    @model_validator(mode="after")
    def _data_from_somewhere(self) -> "Recipe":
        if self.uses_lab and self.data.sources:
            raise ValueError('model.path = "lab" brings its own data: remove data.sources')
        if not self.uses_lab and not self.data.sources:
            raise ValueError("no data: add [[data.sources]] with a path")
        return self
