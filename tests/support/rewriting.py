"""A tiny teacher that rewrites a few records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsdr.core.progress import Bar
from fedsdr.data.records import Record, Turn
from fedsdr.data.template import ChatFormat
from fedsdr.distillation.cache import RewriteCache
from fedsdr.distillation.rewrite import Rewritten, rewrite_records
from fedsdr.distillation.teacher import Teacher
from fedsdr.distillation.verify import build_verifier
from fedsdr.recipe.sections.distill import Distill
from support.tiny_models import make, tokenizer

PROMPT = "{instruction} reference {response} rewrite"
CHAT = ChatFormat(tokenizer())


class Counter(Bar):
    """A bar that only adds up."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.steps = 0

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self.steps += steps


def record(instruction: str, response: str = "a b", answer: str = "") -> Record:
    return Record((Turn("user", instruction),), response, answer=answer)


# Of mixed lengths; the first and the last are the same.
RECORDS = [record(text) for text in ("name one", "a b c d e", "q", "x y z", "two", "name one")]


def options(**changes: Any) -> Distill:
    defaults: dict[str, Any] = {"prompt": PROMPT, "min_tokens": 4, "batch_size": 2}
    return Distill(**(defaults | changes))


def teacher(context: int = 100) -> Teacher:
    return Teacher(make("llama"), CHAT, "weights", context)


def rewrite_all(
    folder: Path, records: Sequence[Record], seed: int = 0, context: int = 100, **changes: Any
) -> list[Rewritten]:
    bar, given = Counter(), options(**changes)
    gate = build_verifier(given, seed, "cpu").gate(records)
    with RewriteCache(folder / "cache.sqlite") as cache:
        done = rewrite_records(teacher(context), records, given, cache, seed, bar, gate)
    assert bar.steps == len(records)
    return done
