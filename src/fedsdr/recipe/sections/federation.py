"""`[federation]` and `[privacy]`: the algorithm by its independent choices; noise."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsdr.recipe.sections.base import Section


class FederationSection(Section):
    """The algorithm, as independent choices. `fedsdr algorithms` lists the names for each, and
    `[options.NAME]` sets the options of a choice (`fedsdr.algorithms.table`).
    """

    algorithm: str = "fedavg"
    """How clients train and how the server takes its step."""
    lora_aggregation: str = "factors"
    """Which adapter tensors are shared, and how they are averaged."""
    targets: Literal["raw", "distilled", "mixed", "two_stream", "two_shared_streams"] = "two_stream"
    """What clients learn from: `"raw"` responses; `"distilled"` ones (FedSD); both in one stream
    (`"mixed"`, where a response that was not rewritten counts twice); or `"two_stream"` (FedSDR).
    `"two_shared_streams"` is an ablation that uploads S too, which is then no longer private."""
    loss: Literal["cross_entropy", "soft", "on_policy"] = "cross_entropy"
    """What the shared adapter (R) and personal ones learn of these responses: their words
    (`"cross_entropy"`); at their words, the distributions of the base model that has the reference
    in its prompt (`"soft"`, without any generation unless `targets` asks for rewrites); or the same
    at words that the client's own model samples in each step (`"on_policy"`, SDFT), where a
    response that `distill.checks` refuse is replaced by the record's target, learnt by its
    words."""
    personalisation: str = "none"
    """A personal adapter for each client, trained after the shared one."""
    robust: str = "none"
    """A robust mean of the updates."""
    compression: str = "none"
    """How updates are compressed."""
    rounds: Annotated[int, Field(ge=0)] = 20
    """Communication rounds. 0 evaluates the base model."""
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of clients sampled in a round (at least one)."""
    late: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of clients (the last by order, at least one if positive) that join only after round
    `late_round`. Until then `participation` applies to the others."""
    late_round: Annotated[int, Field(ge=0)] = 0
    """See `late`."""
    sample_counts: bool = True
    """Whether clients report how many records they have, by which their updates are weighted.
    Otherwise all weights are equal."""
    pooled: bool = False
    """Centralised training, as if one client held all data: a baseline."""

    @property
    def rewrites(self) -> bool:
        """Whether clients rewrite their responses before round 1."""
        return self.targets != "raw" and self.rounds > 0

    @model_validator(mode="after")
    def _pooled_is_raw(self) -> "FederationSection":
        if self.pooled and self.targets != "raw":
            raise ValueError(f'pooled = true needs targets = "raw", not "{self.targets}"')
        return self


class Privacy(Section):
    """Client-level differential privacy of the updates: it hides a client's data as a whole."""

    mode: Literal["none", "central", "local"] = "none"
    """`"central"`: the server adds noise to the sum of a round's updates. `"local"`: each client
    adds noise to its own update."""
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The L2 norm that each update is clipped to."""
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """The noise's standard deviation, in units of `clip`."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta of the reported (epsilon, delta)."""
    lifetime_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The limit of a deployed client on what all releases of its data may add up to, over all runs.
    An update that would exceed it is refused. Without it there is no limit."""
    noise_seed: int | None = None
    """Makes the noise repeatable, for simulations only: whoever knows the seed can subtract the
    noise. By default the noise comes from the operating system's randomness."""

    @model_validator(mode="after")
    def _limit_needs_noise(self) -> "Privacy":
        noisy = self.mode != "none" and self.noise_multiplier > 0 and self.noise_seed is None
        if self.lifetime_epsilon is not None and not noisy:
            raise ValueError(
                'lifetime_epsilon needs noise to count: set mode to "local" or "central" and '
                "noise_multiplier above 0, and leave noise_seed out; or leave lifetime_epsilon out"
            )
        return self
