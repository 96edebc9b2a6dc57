"""One judging from start to end: questions, answers, cost, verdicts, judge.json."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.layout import JUDGE_FILE, JUDGE_FOLDER
from fedsdr.core.progress import Reporter
from fedsdr.judge.analysis import JudgedComparison, pairwise_result, score_result
from fedsdr.judge.answers import Answers, ModelAnswer, answers_of
from fedsdr.judge.asking import (
    Budget,
    CostEstimate,
    JudgeItem,
    Prices,
    ask_all,
    estimate_cost,
    items_for,
    run_loop,
    same_conversation,
)
from fedsdr.judge.client import Endpoint, JudgeClient
from fedsdr.judge.journal import VerdictJournal
from fedsdr.judge.prompts import PROMPT_VERSION
from fedsdr.judge.questions import JudgeQuestion
from fedsdr.model.identity import identity_digest
from fedsdr.workflows.finished import Finished
from fedsdr.workflows.run_folder import locked_folder

VERDICTS_FILE: Final = f"{JUDGE_FOLDER}/verdicts.jsonl"
NO_PRICES: Final = Prices()


@dataclass(frozen=True)
class JudgingPlan:
    """What is judged. b: None rates A alone. other: the run that B is of. limit: new tokens of an
    answer. max_cost: money, None for no bound."""

    run: Finished
    a: str
    b: str | None
    other: Finished
    questions: Sequence[JudgeQuestion]
    source: str
    limit: int = 512
    batch_size: int = 8
    prices: Prices = NO_PRICES
    max_cost: float | None = None

    @property
    def label_b(self) -> str | None:
        """B's name, with its run's where that is another one."""
        elsewhere = self.other.folder.resolve() != self.run.folder.resolve()
        return f"{self.b} of {self.other.folder.name}" if self.b and elsewhere else self.b


@dataclass(frozen=True)
class PreparedJudging:
    """The answers are complete, no verdict has been requested. cost: of the missing verdicts."""

    plan: JudgingPlan
    endpoint: Endpoint
    answers: tuple[Answers, Answers | None]
    items: Sequence[JudgeItem]
    journal: VerdictJournal
    cost: CostEstimate


def check_plan(plan: JudgingPlan) -> None:
    """Raise `UserError` for names that the runs lack, equal models, a bound without prices, a
    spoilt judge.json."""
    stored_judgings(plan.run.folder)
    for run, name in ((plan.run, plan.a), (plan.other, plan.b)):
        if name is not None:
            run.check(name)
    if plan.b is not None and plan.label_b == plan.a:
        raise UserError(f"A and B are the same model, {plan.a!r}: name two, by --a and --b")
    if plan.max_cost is not None and plan.prices.cost(0, 0) is None:
        raise UserError("--max-cost needs --price-in and --price-out, a million tokens' prices")


@contextmanager
def lock_runs(plan: JudgingPlan) -> Iterator[None]:
    """Lock the judge's files in the folders of the plan's runs against other processes."""
    with ExitStack() as held:
        for folder in sorted({each.folder.resolve() for each in (plan.run, plan.other)}):
            held.enter_context(locked_folder(folder / JUDGE_FOLDER, "copy the run folder"))
        yield


def check_endpoint(
    endpoint: Endpoint, judge: Callable[[Endpoint], JudgeClient] = JudgeClient
) -> None:
    """Raise `UserError` where the endpoint cannot be reached or refuses the key."""

    async def look() -> None:
        async with judge(endpoint) as client:
            await client.check()

    run_loop(look)


def prepare_judging(plan: JudgingPlan, endpoint: Endpoint, reporter: Reporter) -> PreparedJudging:
    """Generate the models' answers, and determine which verdicts are missing."""
    check_plan(plan)
    rest = (plan.questions, plan.limit, plan.batch_size, reporter)
    together = plan.b is not None and plan.other.folder.resolve() == plan.run.folder.resolve()
    names = [plan.a, *([plan.b] if together and plan.b else [])]
    a, *others = answers_of(plan.run, names, *rest)
    b = others[0] if others else None
    if plan.b is not None and not together:
        (b,) = answers_of(plan.other, [plan.b], *rest)
    items = items_for(plan.questions, a, b, endpoint)
    journal = VerdictJournal(plan.run.folder / VERDICTS_FILE)
    missing = [item for item in items if journal.get(item.key) is None]
    cost = estimate_cost(missing, endpoint, plan.prices)
    if plan.max_cost is not None and cost.likely is not None and cost.likely > plan.max_cost:
        raise UserError(
            f"the judging is likely to cost {cost.likely:.4g}, more than --max-cost "
            f"{plan.max_cost:g}: raise it, or ask fewer questions by --limit"
        )
    return PreparedJudging(plan, endpoint, (a, b), items, journal, cost)


def run_judging(
    prepared: PreparedJudging,
    reporter: Reporter,
    judge: Callable[[Endpoint], JudgeClient] = JudgeClient,
) -> dict[str, Any]:
    """Request the missing verdicts, and write the run's judge.json."""
    plan, endpoint = prepared.plan, prepared.endpoint
    if missing := prepared.cost.requests:
        budget = Budget(plan.prices, plan.max_cost, endpoint.max_tokens)
        with reporter.bar(f"verdicts of {endpoint.model}", missing) as bar:
            ask_all(prepared.items, endpoint, prepared.journal, budget, bar, judge)
    result = _result(prepared)
    # One of an earlier version does not say what models its names were: it is replaced, too.
    head = _head(plan, endpoint)
    kept = [
        each
        for each in stored_judgings(plan.run.folder)
        if any(each.get(key, value) != value for key, value in head.items())
    ]
    files.write_json(plan.run.folder / JUDGE_FILE, {"judgings": [*kept, result]})
    return result


def stored_judgings(folder: Path) -> list[dict[str, Any]]:
    """The judgings in a run's judge.json."""
    path = folder / JUDGE_FILE
    content = files.read_json(path) if path.exists() else {"judgings": []}
    try:
        return [{"id": each["id"], **each} for each in content["judgings"]]
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not what fedsdr judge writes: delete it and judge again"
        ) from error


def _result(prepared: PreparedJudging) -> dict[str, Any]:
    """One judging of judge.json: what was asked, what came of it, what it took."""
    plan, (a, b) = prepared.plan, prepared.answers
    rows = [row for item in prepared.items if (row := prepared.journal.get(item.key))]
    tokens = {
        kind: sum(row[kind] for row in rows) for kind in ("prompt_tokens", "completion_tokens")
    }
    head = _head(plan, prepared.endpoint)
    given = {name: answers for name, answers in (("a", a), ("b", b)) if answers is not None}
    return {
        "id": hashlib.blake2b(json.dumps(head).encode(), digest_size=8).hexdigest(),
        **head,
        "answers": {name: _describe(answers) for name, answers in given.items()},
        **_judged(plan, a, b, rows),
        "tokens": tokens,
        "cost": plan.prices.cost(*tokens.values()),
    }


def _head(plan: JudgingPlan, endpoint: Endpoint) -> dict[str, Any]:
    """What identifies a judging: its id is the hash of this."""
    texts = json.dumps([[q.turns, q.references] for q in plan.questions])
    return {
        "kind": "score" if plan.b is None else "pairwise",
        "a": plan.a,
        "b": plan.label_b,
        "models": [
            identity_digest(run.identity(name, run.base_identity()))
            for run, name in ((plan.run, plan.a), (plan.other, plan.b))
            if name is not None
        ],
        "questions": {
            "file": plan.source,
            "count": len(plan.questions),
            "turns": len(_turns(plan)),
            "digest": hashlib.blake2b(texts.encode(), digest_size=8).hexdigest(),
        },
        "judge": {
            "model": endpoint.model,
            "host": endpoint.host,
            "prompts": PROMPT_VERSION,
            "temperature": None if endpoint.reasoning else 0,
        },
        "answer_tokens": plan.limit,
    }


def _judged(
    plan: JudgingPlan, a: Answers, b: Answers | None, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The verdicts taken together; without B they are scores."""
    said = {(row["question"], row["turn"], row["order"]): row["verdict"] for row in rows}
    if b is None:
        return score_result([(q.id, q.category, said[q.id, n, ""]) for q, n in _turns(plan)])
    return pairwise_result([_comparison(q, n, a, b, said) for q, n in _turns(plan)])


def _turns(plan: JudgingPlan) -> list[tuple[JudgeQuestion, int]]:
    return [(question, n) for question in plan.questions for n in range(len(question.turns))]


def _comparison(
    question: JudgeQuestion, turn: int, a: Answers, b: Answers, said: dict[Any, Any]
) -> JudgedComparison:
    if same_conversation(a, b, question, turn):
        return JudgedComparison(question.id, question.category, identical=True)
    ab, ba = (said[question.id, turn, order] for order in ("ab", "ba"))
    return JudgedComparison(question.id, question.category, ab, ba)


def _describe(answers: Answers) -> dict[str, float]:
    """Mean words of an answer, and how many were cut or could not be given."""
    each: list[ModelAnswer] = [answer for turns in answers.values() for answer in turns]
    return {
        "words": sum(len(answer.text.split()) for answer in each) / len(each),
        "cut": sum(answer.cut for answer in each),
        "too_long": sum(answer.too_long for answer in each),
    }


def source_name(path: Path) -> str:
    """How judge.json calls the questions: the file's name, and its folder's for question.jsonl."""
    if path.is_dir():
        return f"{path.resolve().name}/question.jsonl"
    return (
        f"{path.resolve().parent.name}/{path.name}" if path.name == "question.jsonl" else path.name
    )
