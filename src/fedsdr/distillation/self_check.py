"""The check `"self"`: does a rewrite follow its reference? The base model's own verdict, no gold.

The model that wrote the rewrite reads it again, with the record's own response in its request and
with responses of other records in the place of it. Where that exchange moves probability, a
faithful rewrite has the tokens that its own reference moves it to; a rewrite from memory, a made-up
value or an evasion has not (`followed_share`).

Which share is enough is calibrated on the client's own data. Responses of other records, each
taken for the reference in turn, give scores of known falsity; a rewrite that ignores its reference
scores like one of these. Its rank among them is a conformal p-value (Vovk et al. 2005), and the
procedure of Benjamini and Hochberg (1995) keeps the expected share of such rewrites among the
accepted below `false_share` (Bates et al. 2023, arXiv 2104.08279). The bound does not cover
rewrites that follow their reference in part: an invention around a true value.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from fedsdr.core import seeds
from fedsdr.data.records import Record
from fedsdr.distillation.checks import Candidate, RewriteCheck, Verdict
from fedsdr.distillation.teacher import Teacher, rewriting_prompt
from fedsdr.generation.continuations import Continued, text_logits
from fedsdr.recipe.sections.distill import Distill

LOGITS_AT_ONCE: Final = 2**26  # of all rows of a batch


@dataclass(frozen=True)
class FollowedShares:
    """`followed_share` with the rewrite's own reference, and with each exchanged one in turn."""

    own: float
    exchanged: Sequence[float]


def self_judge(
    teacher: Teacher, records: Sequence[Record], options: Distill, seed: int
) -> RewriteCheck:
    """Refuses what does not follow its reference more than known falsities do.

    records: all of the client's; with fewer than three distinct responses nothing can be compared,
    and nothing is accepted. Scores are kept from batch to batch, later attempts among them, so that
    the bound is on all that a client accepts.
    """
    limits = options.self_check
    responses = list(dict.fromkeys(each.response for each in records if not each.calls))
    own: list[float] = []
    false: list[float] = []

    def judge(candidates: Sequence[Candidate]) -> list[Verdict]:
        missing = math.ceil(2 / limits.false_share) - len(false)
        count = max(limits.references, math.ceil(missing / max(1, len(candidates))))
        asked = [
            _requests(teacher, each, draw_references(each, responses, count, seed), options)
            for each in candidates
        ]
        scores = list(score_rewrites(teacher, asked))
        own.extend(each.own for each in scores if each)
        false.extend(score for each in scores if each for score in each.exchanged)
        least = least_score(own, false, limits.false_share)
        return [_verdict(each, least) for each in scores]

    return judge


def _verdict(scores: FollowedShares | None, least: float) -> Verdict:
    if scores is None:
        return Verdict("not_compared")
    measured = {"followed": max(0.0, scores.own)}
    return Verdict("" if scores.own >= least else "ignores_reference", measured)


def least_score(own: Sequence[float], false: Sequence[float], share: float) -> float:
    """The least of `own` to be accepted, infinity where none is: Benjamini and Hochberg at level
    `share`, on p-values that are ranks among the scores `false`."""
    ascending, known = sorted(own), sorted(false)
    for rank, score in enumerate(ascending):
        p = (1 + len(known) - bisect_left(known, score)) / (1 + len(known))
        if p * len(ascending) <= share * (len(ascending) - rank):
            return score
    return math.inf


def draw_references(
    candidate: Candidate, responses: Sequence[str], count: int, seed: int
) -> list[str]:
    """Up to `count` responses of other records, none of which the rewrite states: a label that it
    names would be no falsity. Fewer than two are none.

    responses: the client's, each once.
    """
    record, text = candidate.record, candidate.rewrite.text.casefold()
    turns = (turn.text for turn in record.prompt)
    draw = random.Random(seeds.derive_seed(seed, "exchange", *turns, candidate.attempt))
    drawn = draw.sample(responses, min(4 * count, len(responses)))
    others = [each for each in drawn if each != record.response and each.casefold() not in text]
    return others[:count] if len(others) > 1 else []


def _requests(
    teacher: Teacher, candidate: Candidate, references: Sequence[str], options: Distill
) -> list[Continued]:
    """The rewrite as the answer to the request with its own reference, then with the others; those
    that leave the model no room are left out, and all of them where the own one does."""
    text = teacher.chat.response_ids(candidate.rewrite.text)
    room = teacher.context - len(text)
    shown = (candidate.record, *(replace(candidate.record, response=r) for r in references))
    prompts = [rewriting_prompt(teacher.chat, each, options) for each in shown]
    if len(prompts[0]) > room:
        return []
    return [Continued(prompt, (text,)) for prompt in prompts if len(prompt) <= room]


def score_rewrites(
    teacher: Teacher, asked: Sequence[Sequence[Continued]]
) -> Iterator[FollowedShares | None]:
    """The scores of each rewrite, in order; None where there are fewer than two others.

    asked: of each rewrite its requests, with its own reference first.
    """
    for group in _groups(asked, teacher.model.config.get_text_config().vocab_size):
        read = [each for requests in group if len(requests) > 2 for each in requests]
        logits = iter(text_logits(teacher.model, read) if read else ())
        for requests in group:
            if len(requests) > 2:
                found = [next(logits)[0] for _ in requests]
                text = torch.tensor(requests[0].continuations[0], device=found[0].device)
                yield _scores(found, text)
            else:
                yield None


def _groups(
    asked: Sequence[Sequence[Continued]], vocabulary: int
) -> Iterator[list[Sequence[Continued]]]:
    """Rewrites whose logits fit into memory together, in order."""
    group: list[Sequence[Continued]] = []
    for requests in asked:
        both = [each for some in (*group, requests) for each in some]
        longest = max((len(each.continuations[0]) for each in both), default=0)
        if group and len(both) * longest * vocabulary > LOGITS_AT_ONCE:
            yield group
            group = []
        group.append(requests)
    if group:
        yield group


def _scores(logits: Sequence[Tensor], text: Tensor) -> FollowedShares:
    """Each reference is compared with as many exchanged ones, so that the scores can be ranked."""
    own, *exchanged = (each.float().softmax(-1) for each in logits)
    total = torch.stack(exchanged).sum(0)
    fewer = len(exchanged) - 1
    return FollowedShares(
        followed_share(own, (total - exchanged[-1]) / fewer, text),
        [followed_share(each, (total - each) / fewer, text) for each in exchanged],
    )


def followed_share(own: Tensor, others: Tensor, text: Tensor) -> float:
    """Of the probability that the own reference moves, the share that goes where the text goes:

        sum_t (p_t(w_t) - q_t(w_t)) / sum_t TV(p_t, q_t), in [-1, 1], 0 where nothing is moved.

    own, others: p and q, next-token probabilities along the text, (T, V), with the own reference
    and the mean over other ones. text: token ids w, (T,). TV is the total variation distance.
    """
    moved = (own - others).clamp(min=0).sum()
    if float(moved) < 1e-6:
        return 0.0
    gained = (own - others).gather(1, text[:, None]).sum()
    return float(gained / moved)
