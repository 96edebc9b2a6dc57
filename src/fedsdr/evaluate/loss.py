"""Held-out response loss: the metric that every data set has."""

from collections.abc import Mapping, Sequence

import torch

from fedsdr.core.metrics import Mean, Metrics, merge_all
from fedsdr.data.batches import collate_examples
from fedsdr.data.example import Example
from fedsdr.model.trials import rows_at_once
from fedsdr.training.loss import response_loss


class LossEvaluator:
    """Mean -log f(y | c, x) per response token (nats) on held-out raw records.

    For the global model: `loss` over all clients' tokens and `loss/<client>` for each.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        held_out: Mapping[str, Sequence[Example]],
        batch: int,
        pad: int,
    ) -> None:
        self.model, self.held_out, self.batch, self.pad = model, held_out, batch, pad

    def global_model(self) -> Metrics:
        return merge_all(self.personal_model(client) for client in self.held_out)

    def of(self, client: str) -> "LossEvaluator":
        """The same of one client's records."""
        return LossEvaluator(self.model, {client: self.held_out[client]}, self.batch, self.pad)

    def personal_model(self, client: str) -> Metrics:
        loss = self._loss(self.held_out[client])
        return {"loss": loss, f"loss/{client}": loss} if loss.weight else {}

    @torch.no_grad()
    def _loss(self, examples: Sequence[Example]) -> Mean:
        ordered = sorted(examples, key=len)
        device = next(self.model.parameters()).device
        total = Mean(0.0, 0.0)
        size = rows_at_once(self.model, self.batch)
        for start in range(0, len(ordered), size):
            batch = collate_examples(ordered[start : start + size], self.pad).to(device)
            total = total.merge(response_loss(self.model, batch))
        return total
