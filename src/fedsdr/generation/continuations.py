"""Likelihoods of continuations: a prompt is read once, whatever the number of its continuations,
and what all prompts of a batch begin with too."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedsdr.generation.rows import PaddedRows
from fedsdr.model.trials import (
    TRIAL_TEXTS,
    compute_precision,
    passes_trial,
    plain_logits,
    same_logits,
)

WORTH_SHARING: Final = 8  # tokens; a pass for fewer costs more than reading them with each prompt
PROMPTS_AT_ONCE: Final = 32  # of short questions
CHOICES: Final = 4  # continuations of a prompt that a batch has room for, on average


class Continued(NamedTuple):
    """A prompt and its continuations, as token ids; none of them is empty."""

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]


class ContinuationLikelihood(NamedTuple):
    """nats: the log-likelihood. greedy: whether each token is the likeliest one in its place."""

    nats: float
    greedy: bool


def continuation_likelihoods(
    model: Any, asked: Sequence[Continued], rows: int
) -> Iterator[list[ContinuationLikelihood]]:
    """Of each prompt's continuations, prompt by prompt.

    rows: prompts that are read at a time, the shorter ones padded: put like lengths together.
    """
    for batch in _batches(asked, rows):
        yield from _likelihoods(model, batch)


@torch.no_grad()
def choice_likelihoods(model: Any, asked: Sequence[Continued]) -> list[list[float]]:
    """The mean log-likelihood (nats per token) of each prompt's continuations, in the order of
    `asked`; text by text where a trial says that prompts cannot be shared."""
    if not passes_trial(model, shares_prompts):
        return [
            [
                _likelihood(_plain(model, each.prompt, text), text).nats / len(text)
                for text in each.continuations
            ]
            for each in asked
        ]
    order = sorted(range(len(asked)), key=lambda place: len(asked[place].prompt))
    found = continuation_likelihoods(model, [asked[place] for place in order], PROMPTS_AT_ONCE)
    means = {
        place: [
            each.nats / len(text)
            for each, text in zip(likelihoods, asked[place].continuations, strict=True)
        ]
        for place, likelihoods in zip(order, found, strict=True)
    }
    return [means[place] for place in range(len(asked))]


@torch.no_grad()
def text_logits(model: Any, asked: Sequence[Continued]) -> list[list[Tensor]]:
    """`continuation_logits` of all that is asked, in one batch; text by text where a trial says
    that prompts cannot be shared."""
    if passes_trial(model, shares_prompts):
        return continuation_logits(model, asked)
    return [[_plain(model, each.prompt, text) for text in each.continuations] for each in asked]


def _plain(model: Any, prompt: Sequence[int], text: Sequence[int]) -> Tensor:
    """The logits of each token of a text after its prompt, (T, V), by one pass over both."""
    return plain_logits(model, [*prompt, *text])[len(prompt) - 1 : -1]


def _batches(asked: Sequence[Continued], rows: int) -> Iterator[list[Continued]]:
    """At most `rows` prompts, with `CHOICES` times as many continuations unless one has more."""
    batch: list[Continued] = []
    for each in asked:
        count = sum(len(other.continuations) for other in [*batch, each])
        if batch and (len(batch) == rows or count > CHOICES * rows):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _likelihoods(model: Any, batch: Sequence[Continued]) -> list[list[ContinuationLikelihood]]:
    found = continuation_logits(model, batch)
    return [
        [
            _likelihood(logits, continuation)
            for logits, continuation in zip(rows, each.continuations, strict=True)
        ]
        for rows, each in zip(found, batch, strict=True)
    ]


def _likelihood(logits: Tensor, continuation: Sequence[int]) -> ContinuationLikelihood:
    """logits: (T, V), of the continuation's T tokens."""
    ids = torch.tensor(continuation, device=logits.device)
    nats = logits.float().log_softmax(-1).gather(1, ids[:, None]).sum()
    return ContinuationLikelihood(float(nats), bool((logits.argmax(-1) == ids).all()))


@torch.no_grad()
def continuation_logits(model: Any, batch: Sequence[Continued]) -> list[list[Tensor]]:
    """The logits of each token of each prompt's continuations, (T, V) for one of T tokens.

    The prompts are read padded on the left; what their last tokens predict are the continuations'
    first tokens. Their keys and values are then repeated for each continuation of two tokens or
    more, which is padded on the right. What the prompts begin with in common is read once where
    a trial says that it may.
    """
    shared = _shared_length(batch) if len(batch) > 1 else 0
    worth = shared >= WORTH_SHARING and passes_trial(model, shares_beginnings)
    return _logits(model, batch, shared if worth else 0)


def _shared_length(batch: Sequence[Continued]) -> int:
    """How many tokens all prompts begin with in common, short of the whole of one."""
    columns = zip(*(each.prompt[:-1] for each in batch), strict=False)
    return sum(1 for _ in takewhile(lambda tokens: len({*tokens}) == 1, columns))


def _logits(model: Any, batch: Sequence[Continued], shared: int) -> list[list[Tensor]]:
    """`continuation_logits`, of prompts that have `shared` first tokens in common."""
    rows = PaddedRows(model, [each.prompt for each in batch], shared)
    first = rows.logits()  # (B, V)
    longer = [(row, text) for row, each in enumerate(batch)
              for text in each.continuations if len(text) > 1]  # fmt: skip
    rest = iter(_rest(rows, longer) if longer else ())
    return [
        [
            torch.cat([first[row, None], next(rest)[: len(text) - 1]]) if len(text) > 1
            else first[row, None]
            for text in each.continuations
        ]
        for row, each in enumerate(batch)
    ]  # fmt: skip


def _rest(rows: PaddedRows, texts: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
    """The logits after each token of continuations but their last ones, (N, T, V); texts: each
    with the row of its prompt."""
    device = rows.mask.device
    index = torch.tensor([row for row, _ in texts], device=device)
    inputs = [torch.tensor(text[:-1], device=device) for _, text in texts]
    ids = pad_sequence(inputs, batch_first=True)  # (N, T)
    mask = pad_sequence([torch.ones_like(each) for each in inputs], batch_first=True)
    rows.cache.batch_select_indices(index)
    logits: Tensor = rows.model(
        input_ids=ids,
        attention_mask=torch.cat([rows.mask[index], mask], dim=1),
        position_ids=rows.positions[index, -1:] + mask.cumsum(1),
        past_key_values=rows.cache,
        use_cache=True,
    ).logits
    return logits


def shares_prompts(model: Any) -> bool:
    """A trial: whether continuations of common prompts have the logits of each text alone."""
    batch = [
        Continued(text[:at], (text[at:], text[at : at + 1], text[at + 1 :] + text[:2]))
        for text, at in zip(TRIAL_TEXTS, (5, 3), strict=True)
    ]
    return _agree_with_plain(model, batch, shared=0)


def shares_beginnings(model: Any) -> bool:
    """A trial: the same, of prompts whose common beginning is read once."""
    first, second = TRIAL_TEXTS
    prompts = (first[:6], (*first[:3], *second[:1]), first[:4])
    batch = [Continued(prompt, (second[2:], second[1:2], first[4:6])) for prompt in prompts]
    return _agree_with_plain(model, batch, shared=3)


def _agree_with_plain(model: Any, batch: Sequence[Continued], shared: int) -> bool:
    return all(
        same_logits(
            logits,
            _plain(model, each.prompt, continuation),
            compute_precision(model),
        )
        for rows, each in zip(_logits(model, batch, shared), batch, strict=True)
        for logits, continuation in zip(rows, each.continuations, strict=True)
    )
