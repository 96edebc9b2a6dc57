"""Data quality of each client: records, token lengths, truncation, duplicates, leakage."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from fedsdr.data.records import ClientData, Record
from fedsdr.data.template import ChatFormat
from fedsdr.diagnosis.text import split_words
from fedsdr.distillation.answers import check_answer, check_label, check_number
from fedsdr.distillation.checks import Rewrite

QUANTILES: Final = (5, 25, 50, 75, 95, 100)
SHORT: Final = 2  # words; suspicious where the client's median is at least USUAL
USUAL: Final = 10
WRONG: Final = Rewrite("", finished=True)  # refused by every check of correctness that applies
RecordKey = tuple[str, ...]


@dataclass(frozen=True)
class Lengths:
    """Token counts of a client's training records. quantiles: at the percentages `QUANTILES`."""

    total: int
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class ClientQuality:
    """Counts of one client's records; all but `held_out` and the leaks are of training records.

    truncated: prompt and response together are longer than max_length, so the response is cut.
    left_out: the prompt alone leaves no room for a response.
    checkable: a check of the quality gate knows the truth (`answer`, `number`, `label`).
    wordless: the response has no letter or digit. short: it has at most `SHORT` words, where the
        client's median is at least `USUAL`.
    repeated: prompt and response stand earlier at this client. shared: at another one too.
    leaked: held-out records whose prompt is trained on by this client; leaked_across: by another.
    All texts are compared without letter case, spacing and compatibility forms.
    """

    name: str
    records: int
    held_out: int
    categories: dict[str, int]
    prompt_tokens: Lengths
    response_tokens: Lengths
    truncated: int
    left_out: int
    checkable: int
    wordless: int
    short: int
    repeated: int
    shared: int
    leaked: int
    leaked_across: int
    leaks: tuple[str, ...]  # where the first few leaked records stand in the files


def measure_quality(
    clients: Sequence[ClientData], chat: ChatFormat, max_length: int
) -> list[ClientQuality]:
    """A row for each client, counted with this tokenizer and template."""
    prompts = {c.name: {prompt_key(r) for r in c.train} for c in clients}
    whole = {c.name: {_key(r) for r in c.train} for c in clients}
    return [_quality(c, chat, max_length, prompts, whole) for c in clients]


def _quality(
    client: ClientData,
    chat: ChatFormat,
    max_length: int,
    prompts: Mapping[str, set[RecordKey]],
    whole: Mapping[str, set[RecordKey]],
) -> ClientQuality:
    asked = [len(chat.prompt_ids(r.prompt, r.tools)) for r in client.train]
    answered = [len(chat.response_ids(r.response)) for r in client.train]
    counts = [len(split_words(r.response)) for r in client.train]
    usual = median(counts) if counts else 0
    own = [r for r in client.held_out if prompt_key(r) in prompts[client.name]]
    others = _others(prompts, client.name)
    across = [r for r in client.held_out if prompt_key(r) in others]
    elsewhere = _others(whole, client.name)
    return ClientQuality(
        name=client.name,
        records=len(client.train),
        held_out=len(client.held_out),
        categories=dict(Counter(r.category for r in client.train if r.category).most_common()),
        prompt_tokens=_lengths(asked),
        response_tokens=_lengths(answered),
        truncated=sum(p < max_length < p + r for p, r in zip(asked, answered, strict=True)),
        left_out=sum(p >= max_length for p in asked),
        checkable=sum(map(is_checkable, client.train)),
        wordless=sum(n == 0 for n in counts),
        short=sum(0 < n <= SHORT for n in counts) if usual >= USUAL else 0,
        repeated=len(client.train) - len(whole[client.name]),
        shared=sum(_key(r) in elsewhere for r in client.train),
        leaked=len(own),
        leaked_across=len(across),
        leaks=tuple(r.origin for r in [*own, *across] if r.origin)[:5],
    )


def is_checkable(record: Record) -> bool:
    """Whether a check of correctness applies to this record: it refuses an empty rewrite."""
    return any(check(record, WRONG) for check in (check_answer, check_number, check_label))


def normalise_text(text: str) -> str:
    """Without letter case, spacing and compatibility forms (Unicode NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_key(record: Record) -> RecordKey:
    """A key that is equal for records with the same prompt, all turns together."""
    turns = (f"{turn.role} {normalise_text(turn.text)}{turn.extra}" for turn in record.prompt)
    return (*turns, record.tools) if record.tools else tuple(turns)


def _key(record: Record) -> RecordKey:
    return (*prompt_key(record), normalise_text(record.response), record.calls)


def _others(keys: Mapping[str, set[RecordKey]], name: str) -> set[RecordKey]:
    return set().union(*(each for other, each in keys.items() if other != name))


def _lengths(counts: Sequence[int]) -> Lengths:
    found = np.percentile(counts or [0], QUANTILES)
    return Lengths(sum(counts), tuple(float(value) for value in found))
