"""The quality gate: a recipe's checks by name, including those that need a model or other records.

A `Verifier` is made once for a distillation (it loads what is slow to load) and makes a `Gate` for
each client. Verdicts are not in the rewrite cache: with other checks or thresholds the same
generations are judged anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record
from fedsdr.distillation.answers import check_answer, check_label, check_number
from fedsdr.distillation.checks import (
    Candidate,
    Check,
    RewriteCheck,
    Verdict,
    check_empty,
    check_repetition,
    check_truncated,
    invented_turns,
    leaked_thoughts,
    meta_talk,
)
from fedsdr.distillation.entailment import (
    Score,
    check_entailment,
    entailment_judge,
    load_entailment,
)
from fedsdr.distillation.evasion import no_answer, only_echoes
from fedsdr.distillation.invention import invents_facts
from fedsdr.distillation.language import other_language
from fedsdr.distillation.oracle import oracle_judge
from fedsdr.distillation.self_check import self_judge
from fedsdr.distillation.support import support_judge
from fedsdr.distillation.teacher import Teacher
from fedsdr.recipe.sections.distill import Distill

Gate = Callable[[Sequence[Candidate]], list[Verdict]]

PLAIN_CHECKS: Final[Mapping[str, Check]] = {
    "empty": check_empty,
    "truncated": check_truncated,
    "repetition": check_repetition,
    "meta_talk": meta_talk,
    "thoughts": leaked_thoughts,
    "turns": invented_turns,
    "no_answer": no_answer,
    "echo": only_echoes,
    "language": other_language,
    "invention": invents_facts,
    "answer": check_answer,
    "number": check_number,
    "label": check_label,
}


@dataclass(frozen=True)
class Verifier:
    """The shared inputs of all checks. score: the inference model; teacher: the base model, its
    streams off; each where a check needs it."""

    options: Distill
    seed: int
    score: Score | None = None
    teacher: Teacher | None = None

    def gate(self, records: Sequence[Record]) -> Gate:
        """The gate for rewrites of a client's records; `records` are all that it has."""
        return all_of([CHECKS[name](self, records) for name in self.options.checks])


def one_by_one(check: Check) -> RewriteCheck:
    """A check of single rewrites as a judge of batches."""

    def judge(candidates: Sequence[Candidate]) -> list[Verdict]:
        return [Verdict(check(each.record, each.rewrite) or "") for each in candidates]

    return judge


def all_of(judges: Sequence[RewriteCheck]) -> Gate:
    """The first reason counts; a judge sees only what those before it let pass."""

    def gate(candidates: Sequence[Candidate]) -> list[Verdict]:
        verdicts = [Verdict() for _ in candidates]
        for judge in judges:
            waiting = [i for i, verdict in enumerate(verdicts) if not verdict.reason]
            for i, new in zip(waiting, judge([candidates[i] for i in waiting]), strict=True):
                verdicts[i] = Verdict(new.reason, {**verdicts[i].measured, **new.measured})
        return verdicts

    return gate


def _entailment(verifier: Verifier, records: Sequence[Record]) -> RewriteCheck:
    assert verifier.score is not None
    return entailment_judge(verifier.options.entailment, verifier.score)


def _self(verifier: Verifier, records: Sequence[Record]) -> RewriteCheck:
    assert verifier.teacher is not None
    return self_judge(verifier.teacher, records, verifier.options, verifier.seed)


def _plain(check: Check) -> Callable[[Verifier, Sequence[Record]], RewriteCheck]:
    return lambda verifier, records: one_by_one(check)


CHECKS: Final[Mapping[str, Callable[[Verifier, Sequence[Record]], RewriteCheck]]] = {
    **{name: _plain(check) for name, check in PLAIN_CHECKS.items()},
    "support": lambda verifier, records: support_judge(verifier.options.support, records),
    "entailment": _entailment,
    "self": _self,
    "oracle": lambda verifier, records: oracle_judge(verifier.options.oracle, verifier.seed),
}
SLOW: Final = frozenset({"entailment", "self"})  # expensive enough for a pilot


def build_verifier(
    options: Distill, seed: int, device: str, teacher: Teacher | None = None
) -> Verifier:
    """device: of models that name none of their own. teacher: needed by the check `"self"`."""
    needed = "entailment" in options.checks
    score = load_entailment(options.entailment, device) if needed else None
    return Verifier(options, seed, score, teacher)


def check_verifier(options: Distill, records: Sequence[Record], device: str) -> None:
    """Raise what is wrong with a recipe's checks, before any work starts."""
    for key, names in (("checks", options.checks), ("verify", options.verify)):
        if unknown := [name for name in names if name not in CHECKS]:
            raise UserError(f"distill.{key} has {unknown}: choose from {', '.join(CHECKS)}")
    if "entailment" in options.checks:
        check_entailment(options.entailment, device)
    if "oracle" in options.checks and not any(record.answer for record in records):
        raise UserError(
            'the check "oracle" needs gold answers, and no record has one: name their column by '
            "fields.answer, or use another check"
        )
