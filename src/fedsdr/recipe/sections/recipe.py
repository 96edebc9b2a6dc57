"""The whole recipe."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from fedsdr.recipe.sections.base import Section
from fedsdr.recipe.sections.data import Data, English, Lab
from fedsdr.recipe.sections.deployment import Deployment
from fedsdr.recipe.sections.distill import Distill
from fedsdr.recipe.sections.evaluate import Evaluate, Tracking
from fedsdr.recipe.sections.federation import FederationSection, Privacy
from fedsdr.recipe.sections.local import Local
from fedsdr.recipe.sections.method import FEDSDR2, PAPER, TWO_STREAM, MethodName, fill_keys
from fedsdr.recipe.sections.model import Lora, Model
from fedsdr.recipe.sections.rehearsal import Rehearsal

VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=100)]


class Recipe(Section):
    """A whole run: one TOML file."""

    seed: int = 0
    """The seed of all random draws but the noise of differential privacy."""
    method: MethodName = FEDSDR2
    """What the method's keys are where this recipe does not set them: `"fedsdr2"`
    (docs/algorithms.md has the keys that it sets, and docs/beyond.md what came of it) or `"paper"`
    (FedSDR as published, all defaults below), which is also the default where
    `federation.targets` is not `"two_stream"` and where the recipe sets one of
    `local.rectify_targets`, `rectify_alone`, `smoothing_targets`, `smoothing_context` and
    `smoothing_state` itself. As an override of another method it sets all of its keys; baselines
    have none."""
    baselines: tuple[str, ...] = ()
    """Methods that are run for comparison before the recipe's own, each into `baselines/NAME` of
    the run folder: names of methods, choices joined by `+`, or names of `variants`."""
    variants: dict[VariantName, dict[str, Any]] = {}
    """The recipe's own method with some keys changed, by name: `[variants.NAME]`."""
    options: dict[str, dict[str, Any]] = {}
    """The options of choices, by name: `[options.fedprox]`. They apply to the recipe's method and
    its baselines alike."""
    model: Model
    """The base model."""
    lora: Lora = Lora()
    """The adapters."""
    data: Data = Data()
    """What the clients hold."""
    lab: Lab = Lab()
    """The embedded lab."""
    english: English | None = None
    """The English lab."""
    distill: Distill = Distill()
    """Rewriting and its checks."""
    rehearsal: Rehearsal = Rehearsal()
    """What takes the place of some of a client's own records in its batches."""
    federation: FederationSection = FederationSection()
    """The algorithm."""
    privacy: Privacy = Privacy()
    """Differential privacy."""
    local: Local = Local()
    """Local training."""
    evaluate: Evaluate = Evaluate()
    """Evaluation."""
    tracking: Tracking = Tracking()
    """Experiment trackers."""
    deployment: Deployment = Deployment()
    """Timeouts and limits of a deployment."""

    @property
    def uses_lab(self) -> bool:
        """Whether the base model is the embedded lab's, which brings its own world."""
        return self.model.path == "lab"

    @property
    def world(self) -> Lab | English | None:
        """The world whose facts the clients hold, of either lab; None where data are given."""
        return self.lab if self.uses_lab else self.english

    @property
    def world_seed(self) -> int:
        """The seed of that world's facts."""
        own = None if self.world is None else self.world.seed
        return self.seed if own is None else own

    @property
    def losses(self) -> frozenset[str]:
        """What stages minimise, as `federation.loss` names it."""
        federation = self.federation
        streams = federation.targets in ("two_stream", "two_shared_streams")
        smooth = {self.local.smoothing_loss} if streams else set()
        return frozenset({federation.loss, *smooth}) if federation.rounds else frozenset()

    @property
    def rehearses(self) -> bool:
        """Whether texts of the base model are in clients' batches."""
        return self.rehearsal.share > 0 and self.federation.rounds > 0

    @property
    def has_teacher(self) -> bool:
        """Whether a stage learns the distributions of a teacher that is shown references."""
        return not self.losses <= {"cross_entropy"}

    @property
    def dtype(self) -> str:
        """`model.dtype`; the lab's numbers are float32's on any device, unless one is asked for."""
        return "float32" if self.uses_lab and self.model.dtype == "auto" else self.model.dtype

    @model_validator(mode="before")
    @classmethod
    def _method_is_spelled_out(cls, tables: Any) -> Any:
        default = Local.model_fields["rectify_lr"].default
        return fill_keys(tables, default) if isinstance(tables, Mapping) else tables

    @model_validator(mode="after")
    def _rewrites_can_check_themselves(self) -> "Recipe":
        if "self" not in self.distill.checks:
            return self
        if self.model.thinking == "on":
            raise ValueError(
                'distill.checks has "self", which cannot judge rewrites that follow thoughts: set '
                'model.thinking = "off", or leave it out'
            )
        if "on_policy" in self.losses:
            raise ValueError(
                'distill.checks has "self", which judges rewrites before training alone, and a '
                "stage samples its own responses (on_policy): leave it out, or use another loss"
            )
        return self

    @model_validator(mode="after")
    def _method_has_its_streams(self) -> "Recipe":
        targets = self.federation.targets
        if self.method != PAPER and targets != TWO_STREAM:
            raise ValueError(
                f'method = "{self.method}" has two streams, and federation.targets = "{targets}": '
                f'remove that, or set method = "{PAPER}"'
            )
        return self

    @model_validator(mode="after")
    def _rehearsal_fits_the_stages(self) -> "Recipe":
        share, size = self.rehearsal.share, self.local.batch_size
        if not share:
            return self
        if self.rehearsal.examples(size) >= size:
            raise ValueError(
                f"rehearsal.share = {share:g} of local.batch_size = {size} leaves no place for a "
                "client's own record: lower the share (0: nothing is rehearsed), or raise "
                "local.batch_size"
            )
        if "on_policy" in self.losses:
            raise ValueError(
                "rehearsal.share needs stages that learn from given texts, and on_policy samples "
                "its own: set it to 0, or choose another loss"
            )
        if self.model.thinking == "on":
            raise ValueError(
                'rehearsal.share needs answers without thoughts: set model.thinking = "off", or '
                "rehearsal.share = 0"
            )
        return self

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
        if self.uses_lab and self.english is not None:
            raise ValueError(
                "[english] is for any model but the lab's: set model.path to an instruction model, "
                "or remove [english]"
            )
        if self.uses_lab and self.data.sources:
            raise ValueError('model.path = "lab" brings its own data: remove data.sources')
        if self.english is not None and self.data.sources:
            raise ValueError("[english] brings its own data: remove data.sources, or [english]")
        if self.world is None and not self.data.sources:
            raise ValueError("no data: add [[data.sources]] with a path, or a table [english]")
        return self
