"""A simulated check with given error rates: how does an imperfect check affect FedSD?

It compares with the record's gold answer (in the lab every record has one) and then errs at random,
with a separate rate for false acceptance and false rejection.
"""

from collections.abc import Sequence

from fedsdr.core import seeds
from fedsdr.distillation.answers import check_answer
from fedsdr.distillation.checks import Candidate, RewriteCheck, Verdict
from fedsdr.recipe.sections.distill import Oracle


def oracle_judge(options: Oracle, seed: int) -> RewriteCheck:
    """Judges by the record's gold answer; a record without one passes.

    Whether it errs is a function of the seed, the record and the attempt. The draw does not depend
    on the rates: what is judged wrongly at a low rate is judged wrongly at a higher one, too.
    """

    def judge(candidates: Sequence[Candidate]) -> list[Verdict]:
        return [_verdict(each, options, seed) for each in candidates]

    return judge


def _verdict(candidate: Candidate, options: Oracle, seed: int) -> Verdict:
    if not candidate.record.answer:
        return Verdict()
    wrong = check_answer(candidate.record, candidate.rewrite) is not None
    rate = options.false_accept if wrong else options.false_reject
    errs = _uniform(candidate, seed) < rate
    return Verdict("doubted" if wrong != errs else "")


def _uniform(candidate: Candidate, seed: int) -> float:
    """A number in [0, 1)."""
    turns = (turn.text for turn in candidate.record.prompt)
    response, attempt = candidate.record.response, candidate.attempt
    return seeds.derive_seed(seed, "oracle", *turns, response, attempt) / 2**63
