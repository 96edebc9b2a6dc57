"""Transfer between clients: the loss of each one's adapter on the others' examples."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from fedsdr.algorithms.contract import Personal
from fedsdr.core.adapters import Adapter
from fedsdr.core.errors import UserError
from fedsdr.data.example import Example
from fedsdr.evaluate.loss import LossEvaluator
from fedsdr.model.install import install_model
from fedsdr.model.lora import TwoStreamModel

Losses = Mapping[str, Mapping[str, float]]  # trained on -> judged on -> loss


def loss_matrix(
    model: TwoStreamModel,
    examples: Mapping[str, Sequence[Example]],
    adapters: Mapping[str, Adapter],
    pad: int,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """{trained on: {judged on: mean -log f(y | c, x) per response token, in nats}}.

    Each adapter is judged as R, with S off, on everyone's examples (held-out ones, to be fair to
    the others). Afterwards the model holds the last adapter, with all streams off.
    """
    if not adapters or not examples:
        raise UserError(
            f"adapters of {list(adapters)}, examples of {list(examples)}: at least one of each"
        )
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size}: it must be at least 1")
    judge = LossEvaluator(model.model, examples, batch_size, pad)
    matrix: dict[str, dict[str, float]] = {}
    try:
        for trained, adapter in adapters.items():
            install_model(model, Personal(adapter))
            matrix[trained] = {judged: _loss(judge, judged) for judged in examples}
    finally:
        model.activate()
    return matrix


def _loss(judge: LossEvaluator, client: str) -> float:
    metrics = judge.personal_model(client)
    if not metrics:
        raise UserError(f"client {client!r} has no response tokens: leave it out")
    return metrics["loss"].value


def transfer_gap(matrix: Losses) -> float:
    """Mean loss on others' examples minus that on one's own, in nats.

    The further above 0, the less clients' adapters have learnt that is of use to the others.
    """
    return loss_on_others(matrix) - loss_on_own(matrix)


def loss_on_own(matrix: Losses) -> float:
    """Mean loss of the clients' adapters on their own examples, in nats."""
    return _mean(matrix, [loss for a, row in matrix.items() for b, loss in row.items() if a == b])


def loss_on_others(matrix: Losses) -> float:
    """Mean loss of the clients' adapters on each other's examples, in nats."""
    return _mean(matrix, [loss for a, row in matrix.items() for b, loss in row.items() if a != b])


def _mean(matrix: Losses, losses: Sequence[float]) -> float:
    if not losses:
        raise UserError(
            f"clients = {list(matrix)}: a gap needs an adapter judged on its own client's "
            "examples and one judged on another's"
        )
    return fmean(losses)
