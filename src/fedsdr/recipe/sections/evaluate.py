"""`[evaluate]` and `[tracking]`: how models are judged along the way, and where metrics go."""

from typing import Annotated

from pydantic import Field

from fedsdr.recipe.sections.base import Positive, Section


class Evaluate(Section):
    """every: rounds between evaluations (the last round always has one; 0 means only that).
    personal: whether clients' own models are evaluated too, at the end.
    limit: at most this many held-out records of a client.
    aggregation_error: whether each round measures how far the deployed model is from the ideal
        mean of the clients' products B A (costs the memory of the adapted weights).
    benchmarks: public benchmarks for the global model along training (docs/benchmarks.md), with
        the folder of their files, the rounds between evaluations (0: only before the first and
        after the last) and at most so many questions of each subject."""

    every: Annotated[int, Field(ge=0)] = 5
    personal: bool = True
    limit: Positive = 200
    aggregation_error: bool = False
    benchmarks: tuple[str, ...] = ()
    benchmark_data: str | None = None
    benchmark_every: Annotated[int, Field(ge=0)] = 0
    benchmark_limit: Positive | None = None


class Tracking(Section):
    """Where else metrics go, round by round; never texts or adapters (`fedsdr.tracking`).

    backends: "tensorboard", "mlflow", "wandb"; "auto", TensorBoard where it is installed; "none".
    project: W&B's project and MLflow's experiment. name: of the run; its folder's by default.
    """

    backends: tuple[str, ...] = ("auto",)
    project: str = "fedsdr"
    name: str = ""
