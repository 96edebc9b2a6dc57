"""How long records are in tokens: by the model's own tokenizer, or guessed without one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from fedsdr.core import seeds
from fedsdr.data.batches import shuffled_batches
from fedsdr.data.records import ClientData, Record
from fedsdr.data.template import nothing_fits
from fedsdr.distillation.teacher import rewriting_job
from fedsdr.model.base import load_chat
from fedsdr.model.folder import has_tokenizer
from fedsdr.recipe.sections.distill import Distill
from fedsdr.recipe.sections.recipe import Recipe

CHARACTERS = 4  # of English text to a token, where there is no tokenizer to ask
BATCHES = 64  # drawn to learn how much padding a client's batches have


@dataclass(frozen=True)
class Rewriting:
    """One rewriting request, in tokens: its prompt, the reference, and the most it may write."""

    prompt: int
    reference: int
    limit: int


class Counter:
    """Counts tokens; `chat` is None where the model folder has no tokenizer."""

    def __init__(self, recipe: Recipe, path: str) -> None:
        folder = Path(path)
        there = not folder.is_dir() or has_tokenizer(folder)
        self.chat = load_chat(path, recipe.model) if there else None

    def example(self, record: Record, most: int) -> tuple[int, int] | None:
        """Tokens of prompt and response as they are trained on, None where they do not fit."""
        if self.chat is not None:
            example = self.chat.encode(record, record.response, most)
            return None if example is None else (len(example.prompt), len(example.response))
        prompt = sum(_guess(turn.text) for turn in record.prompt)
        return None if prompt >= most else (prompt, min(_guess(record.response), most - prompt))

    def rewriting(self, record: Record, options: Distill) -> Rewriting:
        if self.chat is not None:
            job = rewriting_job(self.chat, record, options, 0, 0)
            reference = len(self.chat.response_ids(record.response))
            return Rewriting(len(job.prompt), reference, job.limit)
        reference = _guess(record.response)
        limit = max(options.min_tokens, math.ceil(options.max_ratio * reference))
        prompt = _guess(options.prompt) + sum(_guess(t.text) for t in record.prompt) + reference
        return Rewriting(prompt, reference, limit)


def _guess(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS)


class BatchPlan(NamedTuple):
    """A client's mean batch, in tokens.

    padded: of its examples, with padding. shown: of the same as a teacher reads them, with padding.
    sampled: of responses as long as the raw ones. longest: of these, the longest of a batch.
    """

    padded: float
    shown: float
    sampled: float
    longest: float


@dataclass(frozen=True)
class ClientPlan:
    """One client, in tokens.

    samples: records that it trains on; left_out: those that are too long.
    tokens, response_tokens: of one pass over the samples. longest: of its samples.
    rewriting: its requests, but for those too long for the model.
    """

    name: str
    samples: int
    left_out: int
    held_out: int
    tokens: int
    response_tokens: int
    batch: BatchPlan
    longest: int
    held_out_tokens: int
    rewriting: tuple[Rewriting, ...]


def client_plan(
    client: ClientData, counter: Counter, recipe: Recipe, most: int, context: int
) -> ClientPlan:
    """Token counts of one client. Raises `UserError` where none of its records fits."""
    found = [counter.example(record, most) for record in client.train]
    pairs = [pair for pair in found if pair is not None]
    if not pairs:
        raise nothing_fits(client.name, most)
    lengths = [sum(pair) for pair in pairs]
    judged = [counter.example(r, most) for r in client.held_out[: recipe.evaluate.limit]]
    rewritten = (record for record in client.train if not record.calls)
    requests = [counter.rewriting(record, recipe.distill) for record in rewritten]
    requests = [r for r in requests if r.prompt + r.limit <= context]
    return ClientPlan(
        name=client.name,
        samples=len(pairs),
        left_out=len(found) - len(pairs),
        held_out=len(client.held_out),
        tokens=sum(lengths),
        response_tokens=sum(response for _, response in pairs),
        batch=batch_plan(lengths, requests, recipe.local.batch_size, client.name),
        longest=max(lengths, default=0),
        held_out_tokens=sum(sum(pair) for pair in judged if pair is not None),
        rewriting=tuple(requests),
    )


def batch_plan(
    lengths: Sequence[int], requests: Sequence[Rewriting], size: int, client: str
) -> BatchPlan:
    """lengths: of a client's examples. requests: those that its teacher would be asked."""
    written = [min(r.reference, r.limit) for r in requests]
    rows = min(size, len(written))
    return BatchPlan(
        padded=padded_batch(lengths, size, client),
        shown=padded_batch([r.prompt + r.reference for r in requests], size, client),
        sampled=rows * fmean(written) if written else 0.0,
        longest=padded_batch(written, size, client) / max(1, rows),
    )


def mean_batch(batches: Sequence[BatchPlan]) -> BatchPlan:
    """Of several clients together."""
    return BatchPlan(*map(fmean, zip(*batches, strict=True)))


def padded_batch(lengths: Sequence[int], size: int, client: str) -> float:
    """Mean tokens of a batch, all its records as long as the longest of them."""
    if not lengths:
        return 0.0
    batches = shuffled_batches(len(lengths), size, seeds.seeded_generator(0, "estimate", client))
    drawn = [[lengths[i] for i in next(batches)] for _ in range(BATCHES)]
    return fmean(max(batch) * len(batch) for batch in drawn)
