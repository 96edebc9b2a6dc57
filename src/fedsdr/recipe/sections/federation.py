"""`[federation]` and `[privacy]`: the algorithm by its independent choices; noise."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsdr.recipe.sections.base import Section


class FederationSection(Section):
    """Independent choices, each a name in one table of `fedsdr.algorithms.table`; `fedsdr
    algorithms` lists them, and `[options.NAME]` sets the options of NAME.

    algorithm: how clients train and the server steps. lora_aggregation: what of the adapters is
        shared, and what their mean is.
    targets: what clients learn from: the "raw" responses, the "distilled" ones (FedSD), both in
        one stream ("mixed"; a response that was not rewritten counts twice), or "two_stream"
        (FedSDR); "two_shared_streams" is an ablation that uploads S too, and so gives up the
        privacy of it.
    personalisation, robust, compression: transforms around these.
    participation: share of the clients that take part in a round (at least one).
    late: share of the clients, the last ones by order and at least one if any, that take part
        from round late_round + 1 on only; until then, `participation` is of the others.
    sample_counts: whether clients tell how many records they have, which their updates are weighed
        by; where they do not, all weigh the same.
    pooled: centralised training, as if one client held all data (a baseline).
    """

    algorithm: str = "fedavg"
    lora_aggregation: str = "factors"
    targets: Literal["raw", "distilled", "mixed", "two_stream", "two_shared_streams"] = "two_stream"
    personalisation: str = "none"
    robust: str = "none"
    compression: str = "none"
    rounds: Annotated[int, Field(ge=0)] = 20
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    late: Annotated[float, Field(ge=0, lt=1)] = 0.0
    late_round: Annotated[int, Field(ge=0)] = 0
    sample_counts: bool = True
    pooled: bool = False

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
    """Differential privacy of what clients upload, for each client's data as a whole.

    mode: "central", the server adds noise to the sum of a round's updates; "local", each client
        to its own.
    clip: L2 norm that every update is clipped to.
    noise_multiplier: standard deviation of the noise, in units of `clip`.
    delta: of the (epsilon, delta) that the summary states.
    lifetime_epsilon: of a client of a deployment, its own limit: what all releases of its data may
        add up to, whatever the run; one that would pass it is refused. None: no limit.
    noise_seed: makes the noise repeatable, for simulation: whoever knows it can take the noise
        off. Without one it comes from the operating system.
    """

    mode: Literal["none", "central", "local"] = "none"
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    lifetime_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    noise_seed: int | None = None

    @model_validator(mode="after")
    def _limit_needs_noise(self) -> "Privacy":
        noisy = self.mode != "none" and self.noise_multiplier > 0 and self.noise_seed is None
        if self.lifetime_epsilon is not None and not noisy:
            raise ValueError(
                'lifetime_epsilon needs noise to count: set mode to "local" or "central" and '
                "noise_multiplier above 0, and leave noise_seed out; or leave lifetime_epsilon out"
            )
        return self
