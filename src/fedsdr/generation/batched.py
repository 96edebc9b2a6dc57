"""Batched generation with a KV cache: greedy, or sampled reproducibly row by row.

`generate_batch` uses the fastest mode that a trial has shown to be correct for the model:
continuously (`fedsdr.generation.slots`), in static batches padded on the left
(`in_batches`), one by one with a cache, or one by one without, which any causal language model can
do.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from fedsdr.generation.contrast import ContrastedRows, contrasted_logits
from fedsdr.generation.rows import PaddedRows
from fedsdr.generation.sampling import Job, Stop, choose_tokens, stop_tokens, uniform_draws
from fedsdr.generation.slots import Slots, supports_slots
from fedsdr.model.prepacked import prepacked_weights
from fedsdr.model.trials import (
    STEPS,
    TRIAL_TEXTS,
    compute_precision,
    passes_trial,
    plain_logits,
    same_logits,
)


class GenerationMode(StrEnum):
    """How `generate_batch` runs a model, fastest first."""

    CONTINUOUS = "continuous"
    BATCHES = "batches"
    SINGLE = "one by one"
    UNCACHED = "without a cache"


@torch.no_grad()
def generate_batch(
    model: Any,
    jobs: Sequence[Job],
    stop: Stop,
    temperature: float = 0.0,
    rows: int | None = None,
) -> list[list[int]]:
    """New token ids for each job; a finished one ends with a token of `stop`, a cut one does not.

    model: a transformers causal LM. temperature: 0 is greedy. rows: jobs that run at a
    time; None: all of them.
    """
    if not jobs:
        return []
    rows = min(rows or len(jobs), len(jobs))
    chosen = generation_mode(model, contrasted=any(job.contrast for job in jobs))
    if chosen is GenerationMode.CONTINUOUS:
        with prepacked_weights(model):
            return Slots(model, jobs, stop, temperature, rows).run()
    if chosen is GenerationMode.UNCACHED:
        return [_uncached(model, job, stop, temperature) for job in jobs]
    rows = rows if chosen is GenerationMode.BATCHES else 1
    return in_batches(model, jobs, stop, temperature, rows)


def generation_mode(model: Any, contrasted: bool = False) -> GenerationMode:
    """The fastest mode that is correct for a model; its trials are cached.

    contrasted: whether jobs have a second prompt, which static batches alone can read.
    """
    if not contrasted and supports_slots(model):
        return GenerationMode.CONTINUOUS
    if passes_trial(model, pads_left):
        return GenerationMode.BATCHES
    return GenerationMode.SINGLE if passes_trial(model, caches_rightly) else GenerationMode.UNCACHED


@torch.no_grad()
def in_batches(
    model: Any, jobs: Sequence[Job], stop: Stop, temperature: float, rows: int
) -> list[list[int]]:
    """The same in static batches of jobs of like length, each until its longest row is done."""
    order = sorted(range(len(jobs)), key=lambda i: (len(jobs[i].prompt), jobs[i].limit, i))
    done: dict[int, list[int]] = {}
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        new = _batch(model, [jobs[i] for i in batch], stop, temperature)
        done.update(zip(batch, new, strict=True))
    return [done[i] for i in range(len(jobs))]


def _batch(model: Any, jobs: Sequence[Job], stop: Stop, temperature: float) -> list[list[int]]:
    limits = torch.tensor([job.limit for job in jobs], device=model.device)
    steps = int(limits.max())
    draws = _all_uniforms(jobs, steps).to(model.device) if temperature > 0 else None
    ends = torch.tensor(sorted(stop_tokens(stop)), device=model.device)
    written = torch.zeros(len(jobs), steps, dtype=torch.long, device=model.device)
    running = limits > 0
    rows = _rows(model, jobs)
    for step in range(steps):
        draw = None if draws is None else draws[:, step]
        token = choose_tokens(rows.logits().float(), temperature, draw)  # (B,)
        written[:, step] = torch.where(running, token, written[:, step])
        running = running & ~torch.isin(token, ends) & (step + 1 < limits)
        if not bool(running.any()):
            break
        rows.append(token)
    return [_trim(row, job.limit, stop) for row, job in zip(written.tolist(), jobs, strict=True)]


def _rows(model: Any, jobs: Sequence[Job]) -> PaddedRows | ContrastedRows:
    own = PaddedRows(model, [job.prompt for job in jobs])
    if not any(job.contrast for job in jobs):
        return own
    other = PaddedRows(model, [job.contrast.prompt if job.contrast else job.prompt for job in jobs])
    strength = [job.contrast.strength if job.contrast else 0.0 for job in jobs]
    floor = [job.contrast.floor if job.contrast else 1.0 for job in jobs]
    return ContrastedRows(
        own,
        other,
        torch.tensor(strength, device=model.device),
        torch.tensor(floor, device=model.device),
    )


def _uncached(model: Any, job: Job, stop: Stop, temperature: float) -> list[int]:
    """One text, the whole of it computed anew for each token."""
    draws = uniform_draws(job) if temperature > 0 else None
    ends, written = stop_tokens(stop), list[int]()
    while len(written) < job.limit and ends.isdisjoint(written[-1:]):
        logits = _next_logits(model, job, written)
        draw = None if draws is None else draws[len(written)][None].to(logits.device)
        written.append(int(choose_tokens(logits, temperature, draw)))
    return written


def _next_logits(model: Any, job: Job, written: Sequence[int]) -> Tensor:
    """(1, V)"""
    logits = plain_logits(model, [*job.prompt, *written])[-1:].float()
    if job.contrast is None:
        return logits
    other = plain_logits(model, [*job.contrast.prompt, *written])[-1:]
    strength = torch.tensor([job.contrast.strength], device=logits.device)
    floor = torch.tensor([job.contrast.floor], device=logits.device)
    return contrasted_logits(logits, other, strength, floor)


def pads_left(model: Any) -> bool:
    """A trial: whether rows padded on the left and cached have the logits of each text alone."""
    return _grows_right(model, TRIAL_TEXTS)


def caches_rightly(model: Any) -> bool:
    """A trial: whether a text alone has the same logits with a cache."""
    return all(_grows_right(model, [text]) for text in TRIAL_TEXTS)


def _grows_right(model: Any, texts: Sequence[Sequence[int]]) -> bool:
    rows = PaddedRows(model, [text[:-STEPS] for text in texts])
    for left in range(STEPS, 0, -1):
        wanted = torch.stack([plain_logits(model, text[:-left])[-1] for text in texts])
        if not same_logits(rows.logits(), wanted, compute_precision(model)):
            return False
        rows.append(torch.tensor([text[-left] for text in texts], device=model.device))
    return True


def _all_uniforms(jobs: Sequence[Job], steps: int) -> Tensor:
    """(B, steps); zeros where a row has ended."""
    draws = torch.zeros(len(jobs), steps, dtype=torch.float64)
    for row, job in enumerate(jobs):
        draws[row, : job.limit] = uniform_draws(job)
    return draws


def _trim(row: list[int], limit: int, stop: Stop) -> list[int]:
    """Cut after the first stop token, or at the limit."""
    row, ends = row[:limit], stop_tokens(stop)
    return row[: next((i for i, token in enumerate(row, 1) if token in ends), limit)]
