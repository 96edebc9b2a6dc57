"""Trials: tests on a model of which shortcuts (padding, packing, caches) are correct for it.

Architectures differ in how they treat padding, positions, packing and caches, and one that ignores
them raises no error. Each shortcut is compared with the plain forward pass of one text alone, and
is only used where the two agree.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fedsdr.core.errors import UserError

# Ids that every vocabulary has; longer than what convolutions look back at.
TRIAL_TEXTS: Final = ((1, 2, 3, 4, 5, 6, 7, 8, 9, 3), (8, 9, 1, 5, 2, 7, 3))
STEPS: Final = 2  # of a text's last ids, fed one by one where a cache is tried
TOLERANCE: Final = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the largest logit
COARSE: Final = 5e-2  # for the short mantissas of the other types

_KNOWN: Final[WeakKeyDictionary[Any, dict[str, bool]]] = WeakKeyDictionary()


def passes_trial(model: Any, trial: Callable[[Any], bool]) -> bool:
    """Whether a trial succeeds (one that raises does not); cached for each model."""
    known = _KNOWN.setdefault(model, {})
    name = f"{trial.__module__}.{trial.__qualname__}"
    if name not in known:
        known[name] = _succeeds(model, trial)
    return known[name]


@torch.no_grad()
def _succeeds(model: Any, trial: Callable[[Any], bool]) -> bool:
    try:
        return trial(model)
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except Exception:  # whatever an architecture raises, it cannot be run so
        return False


def same_logits(found: Tensor, wanted: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether logits are the same but for rounding; NaN is like nothing.

    dtype: what they were computed in, where it is not their own.
    """
    if found.shape != wanted.shape:
        return False
    allowed = TOLERANCE.get(dtype or wanted.dtype, COARSE) * wanted.abs().max()
    return bool((found - wanted).abs().max() <= allowed)


def compute_precision(model: Any) -> torch.dtype:
    """The precision of a model's logits; in 8 bits, rounding depends on the other tokens."""
    quantised = getattr(model.config, "quantization_config", None) is not None
    dtype: torch.dtype = torch.bfloat16 if quantised else model.dtype
    return dtype


def plain_logits(model: Any, text: Sequence[int]) -> Tensor:
    """The logits of one text alone, without padding or cache: (T, V)."""
    ids = torch.tensor([list(text)], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


@torch.no_grad()
def check_causal(model: Any, path: str) -> None:
    """Raise `UserError` where a model cannot be run on plain text, or looks ahead in it."""
    text, short = TRIAL_TEXTS[0], len(TRIAL_TEXTS[0]) // 2
    kind = type(model).__name__
    try:
        whole, beginning = plain_logits(model, text), plain_logits(model, text[:short])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an architecture raises
        raise UserError(
            f"model.path = {path!r}: {kind} cannot be run on plain text "
            f"({str(error).strip().splitlines()[0] if str(error) else type(error).__name__}): "
            "give a causal language model"
        ) from error
    if not whole.isfinite().all():
        raise UserError(
            f"model.path = {path!r}: {kind}'s logits are NaN or infinite in "
            f"{str(model.dtype).removeprefix('torch.')}: set model.dtype to another one, or give "
            "whole weights"
        )
    # Rounding may lead a token or two to other experts; what looks ahead differs everywhere.
    apart = (beginning - whole[:short]).abs().amax(-1).median()
    if not apart <= TOLERANCE.get(compute_precision(model), COARSE) * whole.abs().max():
        decodes = getattr(model.config, "is_decoder", True)
        remedy = "" if decodes else ", or set is_decoder = true in its config.json"
        raise UserError(
            f"model.path = {path!r}: in {kind} a token's logits depend on the tokens after it, so "
            f"its loss would mean nothing: give a causal language model{remedy}"
        )


def pads_rightly(model: Any) -> bool:
    """A trial: whether texts padded on the right have the logits that each has alone."""
    longest = max(map(len, TRIAL_TEXTS))
    ids = torch.zeros(len(TRIAL_TEXTS), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(TRIAL_TEXTS):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    device = model.device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    return all(
        same_logits(logits[row, : len(text)], plain_logits(model, text), compute_precision(model))
        for row, text in enumerate(TRIAL_TEXTS)
    )


def rows_at_once(model: Any, size: int) -> int:
    """How many texts of unequal length one pass may take: `size`, or 1 where padding leaks."""
    return size if size == 1 or passes_trial(model, pads_rightly) else 1
