"""The backends, and which of them a recipe asks for."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Final, NamedTuple

from fedsdr.core.errors import UserError
from fedsdr.tracking.contract import Tracked, Tracker
from fedsdr.tracking.mlflow import MLflow, check_mlflow
from fedsdr.tracking.tensorboard import TensorBoard
from fedsdr.tracking.wandb import WandB, check_wandb


class Backend(NamedTuple):
    """package: what must be importable. check: raises `UserError` where `start` could not work."""

    package: str
    check: Callable[[], None]
    start: Callable[[Tracked], Tracker]


BACKENDS: Final[dict[str, Backend]] = {
    "tensorboard": Backend("tensorboard", lambda: None, TensorBoard),
    "mlflow": Backend("mlflow", check_mlflow, MLflow),
    "wandb": Backend("wandb", check_wandb, WandB),
}
AUTO, NONE = "auto", "none"  # TensorBoard where it is installed; nothing


def choose_backends(names: Sequence[str]) -> dict[str, Backend]:
    """The backends called `names`; raises `UserError` before any of them is started."""
    if unknown := [name for name in names if name not in (AUTO, NONE, *BACKENDS)]:
        known = ", ".join([AUTO, NONE, *BACKENDS])
        raise UserError(f"tracking.backends names {unknown[0]!r}: choose from {known}")
    if NONE in names and len(names) > 1:
        raise UserError('tracking.backends has "none" together with others: leave one of them out')
    chosen = {name: BACKENDS[name] for name in names if name in BACKENDS}
    for name, backend in chosen.items():
        if not find_spec(backend.package):
            raise UserError(
                f"tracking by {name} needs it installed: pip install 'fedsdr[tracking]'"
            )
        backend.check()
    if AUTO in names and find_spec(BACKENDS["tensorboard"].package):
        chosen["tensorboard"] = BACKENDS["tensorboard"]
    return chosen
