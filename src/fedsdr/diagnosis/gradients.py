"""Agreement of the clients' gradients of R at the same R.

The paper compares them before and after distillation (arXiv 2605.18028: cosine up by 8 to 41
points over five tasks).
"""

from collections.abc import Mapping, Sequence

import torch

from fedsdr.algorithms.contract import Personal
from fedsdr.core.adapters import (
    Adapter,
    check_same_keys,
    cosine,
    no_sum,
    plain_factors,
    scale,
)
from fedsdr.core.errors import UserError
from fedsdr.data.batches import collate_examples
from fedsdr.data.example import Example
from fedsdr.diagnosis.pairwise import Pairwise, pairwise_matrix
from fedsdr.model.install import install_model
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.trials import rows_at_once
from fedsdr.training.loss import summed_loss


def client_gradients(
    model: TwoStreamModel,
    examples: Mapping[str, Sequence[Example]],
    shared: Adapter,
    pad: int,
    batch_size: int,
    limit: int,
) -> dict[str, Adapter]:
    """d loss_k / d R at R = `shared` and S off, for each client, on the CPU.

    loss_k: mean -log f(y | c, x) per response token (nats) of the client's first `limit` examples.
    At R^0, where B is 0, the gradient of A is 0 and that of B alone is compared. Afterwards the
    model holds `shared`, with all streams off and nothing trainable.
    """
    if min(batch_size, limit) < 1:
        raise UserError(f"batch_size = {batch_size}, limit = {limit}: both must be at least 1")
    check_same_keys(model.blank(), plain_factors(shared))
    install_model(model, Personal(shared))
    try:
        return {
            name: _gradient(model, name, given[:limit], pad, batch_size)
            for name, given in examples.items()
        }
    finally:
        model.train_only(None)
        model.activate()


def _gradient(
    model: TwoStreamModel, name: str, examples: Sequence[Example], pad: int, size: int
) -> Adapter:
    parameters = model.train_only(Stream.RECTIFY)
    like = model.read(Stream.RECTIFY)
    total, tokens = no_sum(like), 0
    ordered = sorted(examples, key=len)
    size = rows_at_once(model.model, size)
    for start in range(0, len(ordered), size):
        batch = collate_examples(ordered[start : start + size], pad).to(model.device)
        loss = summed_loss(model.model, batch)
        slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        total = total.plus({key: g.cpu() for key, g in zip(parameters, slopes, strict=True)}, 1)
        tokens += batch.response_tokens
    if not tokens:
        raise UserError(f"client {name!r} has no response tokens: leave it out")
    return {key: each.to(like[key].dtype) for key, each in scale(total.total, 1 / tokens).items()}


def pairwise_cosine(adapters: Mapping[str, Adapter]) -> Pairwise:
    """Cosine, -1 to 1, of every two adapters; 0 where one of them is zero."""
    return pairwise_matrix(adapters, cosine)
