"""Corrections of the local gradient: proximal terms and control variates."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsdr.algorithms.contract import Stage
from fedsdr.core.adapters import Adapter


class Correction:
    """What a stage adds to its loss's gradient g: g + strength (w - towards) + shift.

    `apply` after each backward pass, before clipping, changes the gradients in place; on the way
    it gathers the mean of the uncorrected ones where the stage asks for that.
    """

    def __init__(self, stage: Stage, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.strength = stage.pull.strength if stage.pull else 0.0
        self.towards = self._of_parameters(stage.pull.towards if stage.pull else {})
        self.shift = self._of_parameters(stage.shift or {})
        self.sums = (
            {key: torch.zeros_like(p) for key, p in parameters.items()}
            if stage.mean_gradient
            else {}
        )
        self.steps = 0

    def _of_parameters(self, adapter: Adapter) -> dict[str, Tensor]:
        """The tensors of trained parameters, on their device and in their dtype."""
        return {
            key: adapter[key].to(parameter.device, parameter.dtype)
            for key, parameter in self.parameters.items()
            if key in adapter
        }

    @torch.no_grad()
    def apply(self) -> None:
        self.steps += 1
        for key, parameter in self.parameters.items():
            if parameter.grad is None:  # no token reached the layer: an unused expert, say
                parameter.grad = torch.zeros_like(parameter)
            gradient = parameter.grad
            if key in self.sums:
                self.sums[key] += gradient
            if key in self.towards:
                gradient.add_(parameter - self.towards[key], alpha=self.strength)
            if key in self.shift:
                gradient.add_(self.shift[key])

    def mean_gradient(self, like: Adapter) -> Adapter:
        """The mean of the gradients so far, zero for what was not trained; {} if not asked for."""
        if not self.sums:
            return {}
        return {
            key: (self.sums[key] / max(self.steps, 1)).cpu()
            if key in self.sums
            else torch.zeros_like(like[key])
            for key in like
        }
