"""Requests to the judge: their cost, the budget, and each verdict stored as it arrives."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fedsdr.core.errors import UserError
from fedsdr.core.progress import Bar
from fedsdr.judge.answers import Answers
from fedsdr.judge.client import Endpoint, JudgeClient
from fedsdr.judge.journal import JournalRow, VerdictJournal
from fedsdr.judge.prompts import (
    AGAIN_PAIR,
    AGAIN_SINGLE,
    PROMPT_VERSION,
    Messages,
    pairwise_prompt,
    rating_prompt,
)
from fedsdr.judge.questions import JudgeQuestion
from fedsdr.judge.verdicts import read_choice, read_score

Order = Literal["ab", "ba", ""]
REPLIES: Final = 3  # that a request may take until its verdict can be read
BYTES_PER_TOKEN: Final = 4.0  # of English text, with the usual tokenizers
TYPICAL_REPLY: Final = 250  # tokens


@dataclass(frozen=True)
class JudgeItem:
    """One verdict to ask for. order: who is shown first; "" where one conversation is rated."""

    key: str
    question: str
    turn: int
    order: Order
    messages: Messages

    @property
    def prompt_tokens(self) -> int:
        """An estimate."""
        text = "".join(message["content"] for message in self.messages)
        return round(len(text.encode()) / BYTES_PER_TOKEN) + 4 * len(self.messages)


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens; None where unknown."""

    prompt: float | None = None
    completion: float | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        if self.prompt is None or self.completion is None:
            return None
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class CostEstimate:
    """The cost of the missing verdicts. likely, most: money, with typical and longest replies."""

    requests: int
    prompt_tokens: int
    likely: float | None
    most: float | None


def items_for(
    questions: Sequence[JudgeQuestion], a: Answers, b: Answers | None, endpoint: Endpoint
) -> list[JudgeItem]:
    """Both orders of every pair of unequal conversations, or one rating of every conversation."""
    items = []
    for q in questions:
        for turn in range(len(q.turns)):
            asked: list[tuple[Order, Messages]]
            if b is None:
                asked = [("", rating_prompt(q, turn, a[q.id]))]
            elif same_conversation(a, b, q, turn):
                asked = []
            else:
                asked = [
                    ("ab", pairwise_prompt(q, turn, a[q.id], b[q.id])),
                    ("ba", pairwise_prompt(q, turn, b[q.id], a[q.id])),
                ]
            items += [
                JudgeItem(_key(endpoint, order, m), q.id, turn, order, m) for order, m in asked
            ]
    return items


def same_conversation(a: Answers, b: Answers, question: JudgeQuestion, turn: int) -> bool:
    """Whether both conversations are identical so far: a tie, which needs no judge."""
    one, other = a[question.id][: turn + 1], b[question.id][: turn + 1]
    return [answer.text for answer in one] == [answer.text for answer in other]


def estimate_cost(items: Sequence[JudgeItem], endpoint: Endpoint, prices: Prices) -> CostEstimate:
    """The cost of asking for these items, with typical and with the longest replies."""
    prompt = sum(item.prompt_tokens for item in items)
    likely = min(TYPICAL_REPLY, endpoint.max_tokens) * len(items)
    most = endpoint.max_tokens * len(items)
    return CostEstimate(len(items), prompt, prices.cost(prompt, likely), prices.cost(prompt, most))


class Budget:
    """Refuses a request that might exceed the spending `limit`."""

    def __init__(self, prices: Prices, limit: float | None, longest_reply: int) -> None:
        self._prices, self._limit, self._reply = prices, limit, longest_reply
        self.spent = self._open = 0.0

    def reserve(self, prompt_tokens: int) -> float:
        """Reserve the highest possible cost of the next request."""
        most = self._prices.cost(prompt_tokens, self._reply) or 0.0
        if self._limit is not None and self.spent + self._open + most > self._limit:
            raise UserError(
                f"--max-cost {self._limit:g} is reached ({self.spent:.4g} are spent in this "
                "session): nothing is lost, give the same command with a higher one to go on"
            )
        self._open += most
        return most

    def settle(self, reserved: float, prompt_tokens: int, completion_tokens: int) -> None:
        self._open -= reserved
        self.spent += self._prices.cost(prompt_tokens, completion_tokens) or 0.0


def ask_all(
    items: Sequence[JudgeItem],
    endpoint: Endpoint,
    journal: VerdictJournal,
    budget: Budget,
    bar: Bar,
    judge: Callable[[Endpoint], JudgeClient] = JudgeClient,
) -> None:
    """Request every verdict that the journal lacks, several at a time.

    Raises `UserError` at the first request that fails finally; verdicts so far are kept.
    """
    missing = [item for item in items if journal.get(item.key) is None]

    async def one(client: JudgeClient, places: asyncio.Semaphore, item: JudgeItem) -> None:
        async with places:
            journal.append([await _verdict(client, item, budget)])
        bar.advance()

    async def everything() -> None:
        places = asyncio.Semaphore(endpoint.concurrency)
        async with judge(endpoint) as client, asyncio.TaskGroup() as group:
            for item in missing:
                group.create_task(one(client, places, item))

    run_loop(everything)


def run_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end; of several errors only the first is raised."""
    try:
        asyncio.run(work())
        return
    except* UserError as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
    raise first


async def _verdict(client: JudgeClient, item: JudgeItem, budget: Budget) -> JournalRow:
    """A row of the journal; its verdict is None where no reply could be read."""
    messages = list(item.messages)
    prompt = completion = replies = 0
    verdict: str | int | None = None
    text = ""
    while verdict is None and replies < REPLIES:
        reserved = budget.reserve(item.prompt_tokens)
        try:
            reply = await client.ask(messages)
        except BaseException:
            budget.settle(reserved, 0, 0)
            raise
        budget.settle(reserved, reply.prompt_tokens, reply.completion_tokens)
        prompt, completion = prompt + reply.prompt_tokens, completion + reply.completion_tokens
        replies, text = replies + 1, reply.text
        verdict = read_choice(text) if item.order else read_score(text)
        # At temperature 0 the same question has the same reply: ask for the verdict alone.
        again = AGAIN_PAIR if item.order else AGAIN_SINGLE
        messages = [
            *item.messages,
            {"role": "assistant", "content": text or "-"},
            {"role": "user", "content": again},
        ]
    return {
        "key": item.key,
        "question": item.question,
        "turn": item.turn,
        "order": item.order,
        "verdict": verdict,
        "replies": replies,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "reply": text,
    }


def _key(endpoint: Endpoint, order: Order, messages: Messages) -> str:
    asker = [endpoint.host, endpoint.model, endpoint.max_tokens, endpoint.reasoning]
    content = json.dumps([PROMPT_VERSION, *asker, order, messages])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
