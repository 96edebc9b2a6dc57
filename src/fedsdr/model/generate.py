"""Batched generation with a KV cache: greedy, or sampled reproducibly row by row.

`generate` serves a list of jobs the fastest way that the model allows: continuously
(`fedsdr.model.slots`), or in static batches (`in_batches`), which any causal language model of
transformers can do and which is what the other is tested against.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from fedsdr.model.choose import Job, choose, uniforms
from fedsdr.model.prepacked import prepacked
from fedsdr.model.slots import Slots, serves


@torch.no_grad()
def generate(
    model: Any,
    jobs: Sequence[Job],
    stop: int,
    temperature: float = 0.0,
    rows: int | None = None,
) -> list[list[int]]:
    """New token ids for each job; a finished one ends with `stop`, a cut one does not.

    model: a transformers causal LM. temperature: 0 is greedy. rows: at most so many jobs are in
    the works at a time; all of them where it is not given.
    """
    if not jobs:
        return []
    rows = min(rows or len(jobs), len(jobs))
    if not serves(model):
        return in_batches(model, jobs, stop, temperature, rows)
    with prepacked(model):
        return Slots(model, jobs, stop, temperature, rows).run()


@torch.no_grad()
def in_batches(
    model: Any, jobs: Sequence[Job], stop: int, temperature: float, rows: int
) -> list[list[int]]:
    """The same in static batches of jobs of like length, each until its longest row is done."""
    order = sorted(range(len(jobs)), key=lambda i: (len(jobs[i].prompt), jobs[i].limit, i))
    done: dict[int, list[int]] = {}
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        new = _batch(model, [jobs[i] for i in batch], stop, temperature)
        done.update(zip(batch, new, strict=True))
    return [done[i] for i in range(len(jobs))]


def _batch(model: Any, jobs: Sequence[Job], stop: int, temperature: float) -> list[list[int]]:
    prompts, mask = _pad_left([job.prompt for job in jobs], model.device)  # (B, T)
    limits = torch.tensor([job.limit for job in jobs], device=model.device)
    steps = int(limits.max())
    draws = _all_uniforms(jobs, steps).to(model.device) if temperature > 0 else None
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


def _all_uniforms(jobs: Sequence[Job], steps: int) -> Tensor:
    """(B, steps); zeros where a row has ended."""
    draws = torch.zeros(len(jobs), steps, dtype=torch.float64)
    for row, job in enumerate(jobs):
        draws[row, : job.limit] = uniforms(job)
    return draws


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # any id does: it is masked out
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _trim(row: list[int], limit: int, stop: int) -> list[int]:
    """Cut after the first stop token, or at the limit."""
    row = row[:limit]
    return row[: row.index(stop) + 1] if stop in row else row
