"""`[evaluate]` and `[tracking]`: how models are judged along the way, and where metrics go."""

from typing import Annotated

from pydantic import Field

from fedsdr.recipe.sections.base import Positive, Section


class Evaluate(Section):
    """How models are evaluated during a run and at its end."""

    every: Annotated[int, Field(ge=0)] = 5
    """Rounds between evaluations of the global model. The last round is always evaluated; 0
    evaluates only then."""
    personal: bool = True
    """Evaluate the clients' personal models at the end, too."""
    limit: Positive = 200
    """The most held-out records of a client that are used."""
    aggregation_error: bool = False
    """Measure in each round how far the aggregated model is from the ideal mean of the products B
    A. Needs memory for the adapted weights."""
    benchmarks: tuple[str, ...] = ()
    """Public benchmarks of the global model during training; see docs/benchmarks.md."""
    benchmark_data: str | None = None
    """The folder with the benchmarks' files."""
    benchmark_every: Annotated[int, Field(ge=0)] = 0
    """Rounds between benchmark evaluations; 0 runs them only before the first and after the last
    round."""
    benchmark_limit: Positive | None = None
    """The most questions of each benchmark subject."""
    benchmark_chat: bool = False
    """Prompt the benchmarks through the chat template. Published scores of the likelihood
    benchmarks are without."""


class Tracking(Section):
    """Experiment trackers that receive the metrics of each round, never texts or adapters."""

    backends: tuple[str, ...] = ("auto",)
    """Any of `"tensorboard"`, `"mlflow"` and `"wandb"`; `"auto"` is TensorBoard if it is installed,
    `"none"` turns tracking off."""
    project: str = "fedsdr"
    """The project of W&B and the experiment of MLflow."""
    name: str = ""
    """The name of the tracked run; by default that of the run folder."""
