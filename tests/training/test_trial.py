"""The gradient that is tried before any work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fedsdr.core.errors import UserError
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.training import trial
from fedsdr.training.trial import check_learns
from support import tiny_models


def two_streams() -> TwoStreamModel:
    return TwoStreamModel(tiny_models.make("llama"), ["q_proj", "v_proj"], 4, 8.0)


@contextmanager
def another_head(model: Any, checkpointing: bool) -> Iterator[None]:
    """Activations that are recomputed are those of another model."""
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0 if checkpointing else 1.0)
    yield


def test_a_trial_leaves_nothing_in_the_model():
    model = two_streams()
    check_learns(model, checkpointing=True)
    assert not any(tensor.any() for tensor in model.read(Stream.RECTIFY).values())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_gradients_that_change_with_checkpointing_are_refused(monkeypatch):
    monkeypatch.setattr(trial, "recompute_activations", another_head)
    check_learns(two_streams(), checkpointing=False)
    with pytest.raises(UserError, match="has other gradients with gradient checkpointing"):
        check_learns(two_streams(), checkpointing=True)
