"""A pilot: the gate's acceptance rate and the cost of rewriting, estimated from a small sample.

The sample goes through all attempts, as the whole set will: records that fail once fail more often
than others, so the acceptance of first attempts alone would be too optimistic.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from fedsdr.core import seeds
from fedsdr.core.progress import Bar
from fedsdr.core.statistics import Proportion, wilson_interval
from fedsdr.data.records import Record
from fedsdr.distillation.cache import NoCache
from fedsdr.distillation.rewrite import Rewritten, rewrite_records
from fedsdr.distillation.teacher import Teacher
from fedsdr.distillation.verify import Gate
from fedsdr.recipe.sections.distill import Distill


class Pilot(NamedTuple):
    """A client's sample, and what follows for all its records.

    first: records whose first attempt passes. raw: those that keep the raw response after all
    attempts. generations, tokens (new ones), thoughts (of these, those of thoughts) and seconds are
    those expected of the whole set; seconds is high where the sample fills no batch.
    """

    client: str
    sample: int
    records: int
    first: Proportion
    raw: Proportion
    generations: float
    tokens: float
    seconds: float
    thoughts: float = 0.0


def run_pilot(
    teacher: Teacher,
    client: str,
    records: Sequence[Record],
    options: Distill,
    seed: int,
    gate: Gate,
    count: int,
) -> Pilot:
    """Rewrite `count` of the client's records, drawn by seed, and discard the rewrites."""
    assert 0 < count <= len(records)
    sample = draw_sample(client, records, seed, count)
    began = time.perf_counter()
    done = rewrite_records(teacher, sample, options, NoCache(), seed, Bar(None, None), gate)
    return extrapolate_sample(client, done, len(records), time.perf_counter() - began)


def draw_sample(client: str, records: Sequence[Record], seed: int, count: int) -> list[Record]:
    """`count` of a client's records, all of them where it has fewer; the same for any prompt."""
    order = sorted(range(len(records)), key=lambda i: seeds.derive_seed(seed, "pilot", client, i))
    return [records[i] for i in order[:count]]


def extrapolate_sample(
    client: str, done: Sequence[Rewritten], records: int, seconds: float
) -> Pilot:
    """From a sample's outcome to the whole set."""
    first = sum(bool(r.tried) and not r.tried[0].verdict.reason for r in done)
    scale = records / len(done)
    return Pilot(
        client,
        len(done),
        records,
        wilson_interval(first / len(done), len(done)),
        wilson_interval(sum(bool(r.reason) for r in done) / len(done), len(done)),
        generations=scale * sum(len(r.tried) for r in done),
        tokens=scale * sum(attempt.tokens for r in done for attempt in r.tried),
        seconds=scale * seconds,
        thoughts=scale * sum(attempt.thought for r in done for attempt in r.tried),
    )


def total_pilot(pilots: Sequence[Pilot]) -> Pilot:
    """The pilots of all clients together: expected counts add up, and rates are weighted by the
    clients' numbers of records, regardless of the sizes of their samples."""
    records = sum(p.records for p in pilots)
    weights = [p.records / records for p in pilots]
    # Kish 1965: the effective sample size of a weighted mean.
    size = 1 / sum(w**2 / p.sample for w, p in zip(weights, pilots, strict=True))

    def joint(rates: Sequence[Proportion]) -> Proportion:
        shares = (w * rate.share for w, rate in zip(weights, rates, strict=True))
        return wilson_interval(min(1.0, math.fsum(shares)), size)

    return Pilot(
        "all",
        sum(p.sample for p in pilots),
        records,
        joint([p.first for p in pilots]),
        joint([p.raw for p in pilots]),
        generations=sum(p.generations for p in pilots),
        tokens=sum(p.tokens for p in pilots),
        seconds=sum(p.seconds for p in pilots),
        thoughts=sum(p.thoughts for p in pilots),
    )
