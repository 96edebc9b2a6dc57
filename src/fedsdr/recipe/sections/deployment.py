"""`[deployment]`: how a federation across organisations bears with clients that fail."""

from typing import Annotated

from pydantic import Field

from fedsdr.recipe.sections.base import Positive, Section

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Deployment(Section):
    """Timeouts and limits of a deployed federation. Only the server reads them; a simulation in
    one process has no absent clients."""

    min_clients: Positive = 2
    """The fewest updates that complete a round (all of them, where fewer clients are sampled). With
    fewer, the run stops and can be resumed."""
    round_seconds: Seconds = 3600.0
    """How long a client may take to answer in a round, in seconds; also for an evaluation."""
    prepare_seconds: Seconds = 86400.0
    """The same for loading and rewriting its data before round 1."""
    wait_seconds: Seconds = 3600.0
    """How long the server waits for clients to connect before it gives up, in seconds."""
    reconnect_seconds: Seconds = 300.0
    """How long a request waits for a client that has disconnected, in seconds."""
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e6
    """Updates with a larger Euclidean norm are rejected. Use `federation.robust` against harmful
    updates of ordinary size."""
