"""Batched generation with a KV cache: greedy, or sampled reproducibly row by row.

Each row draws from its own seed (inverse-CDF sampling from one uniform number a step), so what
a prompt yields does not depend on its neighbours in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from fedsdr import seeds


@dataclass(frozen=True)
class Job:
    """One text to generate: prompt ids, at most `limit` new tokens, and a seed for sampling."""

    prompt: Sequence[int]
    limit: int
    seed: int = 0


@torch.no_grad()
def generate(
    model: Any, jobs: Sequence[Job], stop: int, temperature: float = 0.0
) -> list[list[int]]:
    """New token ids for each job; a finished one ends with `stop`, a cut one does not.

    model: a transformers causal LM. temperature: 0 is greedy.
    """
    prompts, mask = _pad_left([job.prompt for job in jobs], stop, model.device)  # (B, T)
    limits = torch.tensor([job.limit for job in jobs], device=model.device)
    steps = int(limits.max())
    draws = _uniforms(jobs, steps).to(model.device) if temperature > 0 else None
    written = torch.full((len(jobs), steps), stop, device=model.device)
    running = limits > 0
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = prompts
    for step in range(steps):
        out = model(
            input_ids=inputs, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        draw = None if draws is None else draws[:, step]
        token = choose(out.logits[:, -1].float(), temperature, draw)  # (B,)
        written[:, step] = torch.where(running, token, written[:, step])
        running = running & (token != stop) & (step + 1 < limits)
        if not bool(running.any()):
            break
        inputs = token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(jobs), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [_trim(row, job.limit, stop) for row, job in zip(written.tolist(), jobs, strict=True)]


def choose(logits: Tensor, temperature: float, draw: Tensor | None) -> Tensor:
    """The next token of each row: the likeliest, or the one whose CDF interval holds `draw`."""
    if draw is None:
        return logits.argmax(-1)
    cdf = (logits.double() / temperature).softmax(-1).cumsum(-1)  # (B, V)
    token = torch.searchsorted(cdf, (draw * cdf[:, -1])[:, None], right=True)
    return token.squeeze(1).clamp(max=logits.shape[-1] - 1)


def _uniforms(jobs: Sequence[Job], steps: int) -> Tensor:
    """(B, steps) numbers in [0, 1); a row depends on its job's seed alone."""
    rows = [
        torch.rand(steps, dtype=torch.float64, generator=seeds.generator(job.seed, "sampling"))
        for job in jobs
    ]
    return torch.stack(rows)


def _pad_left(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _trim(row: list[int], limit: int, stop: int) -> list[int]:
    """Cut after the first stop token, or at the limit."""
    row = row[:limit]
    return row[: row.index(stop) + 1] if stop in row else row
