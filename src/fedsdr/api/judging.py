"""Verdicts of another model on the answers of a run's models."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from fedsdr.api.progress import ProgressOption, call_reporter
from fedsdr.core.errors import UserError
from fedsdr.core.layout import SUMMARY_FILE
from fedsdr.judge.asking import Prices
from fedsdr.judge.client import Endpoint, endpoint_from
from fedsdr.judge.judging import (
    NO_PRICES,
    JudgingPlan,
    PreparedJudging,
    check_endpoint,
    check_plan,
    lock_runs,
    prepare_judging,
    run_judging,
    source_name,
)
from fedsdr.judge.questions import read_questions
from fedsdr.report.html import write_report
from fedsdr.workflows.finished import GLOBAL_MODEL, Finished, open_finished


@dataclass(frozen=True)
class JudgeRequest:
    """What is judged.

    questions: JSONL with `turns`, `question`, `instruction` or `prompt`, or a folder with
    question.jsonl. a, b: models of the run; without `b`, answers of `a` are rated from 1 to 10.
    against: folder of another run that `b` belongs to. reference: a file of reference answers in
    FastChat's format. limit: use the first questions only. answer_tokens: limit of an answer's
    turn. batch_size: answers generated at a time. prices: per million tokens. max_cost: upper
    bound in the unit of `prices`, which it needs.
    """

    questions: str | PathLike[str]
    a: str = GLOBAL_MODEL
    b: str = ""
    against: str | PathLike[str] | None = None
    reference: str | PathLike[str] | None = None
    limit: int | None = None
    answer_tokens: int = 512
    batch_size: int = 8
    prices: Prices = NO_PRICES
    max_cost: float | None = None


def judge_endpoint(
    model: str, base_url: str = "", key_variable: str = "OPENAI_API_KEY", **options: Any
) -> Endpoint:
    """An OpenAI-compatible endpoint, with `model` as the judge.

    base_url: by default $OPENAI_BASE_URL, else OpenAI's. key_variable: the environment variable
    that holds the key, which is never written to a file. options: the other fields of `Endpoint`.
    Raises `UserError` without a key.
    """
    base_url = base_url or os.environ.get("OPENAI_BASE_URL", "")
    return endpoint_from(os.environ, key_variable, base_url, model, **options)


@contextmanager
def prepared_judging(
    run: Finished, request: JudgeRequest, endpoint: Endpoint, progress: ProgressOption = True
) -> Iterator[PreparedJudging]:
    """Let the run's models answer, and find the missing verdicts and their cost.

    With a key, the endpoint is tried once; no question is sent. The judge's files in the run folder
    are locked until the block ends.
    """
    with ExitStack() as held:
        with call_reporter(progress) as reporter:
            plan = _plan(run, request)
            if endpoint.key:
                check_endpoint(endpoint)
            held.enter_context(lock_runs(plan))
            prepared = prepare_judging(plan, endpoint, reporter)
        yield prepared


def ask_judge(prepared: PreparedJudging, progress: ProgressOption = True) -> dict[str, Any]:
    """Ask for the missing verdicts, and write the run's judge.json and its report."""
    folder = prepared.plan.run.folder
    with call_reporter(progress) as reporter:
        result = run_judging(prepared, reporter)
        if (folder / SUMMARY_FILE).exists():
            write_report(folder)
    return result


def _plan(run: Finished, request: JudgeRequest) -> JudgingPlan:
    if request.against is not None and not request.b:
        raise UserError(f"--against {request.against} needs --b, the name of a model of that run")
    other = run if request.against is None else open_finished(Path(request.against))
    questions = Path(request.questions)
    reference = None if request.reference is None else Path(request.reference)
    plan = JudgingPlan(
        run, request.a, request.b or None, other,
        read_questions(questions, reference, request.limit), source_name(questions),
        request.answer_tokens, request.batch_size, request.prices, request.max_cost,
    )  # fmt: skip
    check_plan(plan)
    return plan
