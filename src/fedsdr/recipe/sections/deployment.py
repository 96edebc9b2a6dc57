"""`[deployment]`: how a federation across organisations bears with clients that fail."""

from typing import Annotated

from pydantic import Field

from fedsdr.recipe.sections.base import Positive, Section

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Deployment(Section):
    """Read by the server alone; a run in one process knows no absent clients.

    min_clients: updates that a round needs (all, where fewer are asked for); with fewer the run
        stops, and can be resumed.
    round_seconds: what a client has to answer in, in a round; an evaluation counts as one.
    prepare_seconds: the same for loading data and rewriting them, before round 1.
    wait_seconds: how long the server waits for clients to connect before it gives up.
    reconnect_seconds: how long a question waits for a client that is not connected.
    max_norm: updates of a larger Euclidean norm are refused; robust aggregation
        (`federation.robust`) is for those that look like any other.
    """

    min_clients: Positive = 2
    round_seconds: Seconds = 3600.0
    prepare_seconds: Seconds = 86400.0
    wait_seconds: Seconds = 3600.0
    reconnect_seconds: Seconds = 300.0
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e6
