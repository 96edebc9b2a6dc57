"""FedSD step 1: y~_i ~ f_teacher(. | c_i, x_i, y_i), once, before round 1.

arXiv 2605.18028, Sec. method; the prompt and the fallback to the raw response follow SDFT
(arXiv 2402.13669). The teacher is the broadcast model of round 0, which is the base model.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fedsdr.core import seeds
from fedsdr.core.progress import Bar
from fedsdr.data.records import Record
from fedsdr.data.template import ChatFormat
from fedsdr.distillation.answers import check_answer
from fedsdr.distillation.cache import Generations, job_key
from fedsdr.distillation.checks import Candidate, Rewrite, Verdict
from fedsdr.distillation.invention import invents_facts
from fedsdr.distillation.teacher import Teacher, rewriting_job
from fedsdr.distillation.verify import Gate
from fedsdr.generation.sampling import Job
from fedsdr.generation.table import GENERATORS
from fedsdr.recipe.sections.distill import Distill

# Batches that are generated, judged and stored together. More would lose more to a kill, fewer
# would leave more rows idle at the end.
REWRITE_GROUP: Final = 8


@dataclass(frozen=True)
class Attempt:
    """One generation and the gate's verdict.

    text: without thoughts. tokens: generated ones, of which `thought` are thoughts and their marks.
    finished: as of `Rewrite`.
    """

    text: str
    tokens: int
    verdict: Verdict
    finished: bool = True
    thought: int = 0


@dataclass(frozen=True)
class Rewritten:
    """A record's distilled target and where it came from.

    text: what the client learns from: the rewrite, or the raw response.
    reason: why the last rewrite was refused; "" where one was accepted.
    attempts: generations that were tried.
    tried: these generations, in order.
    """

    record: Record
    text: str
    reason: str
    attempts: int
    tried: tuple[Attempt, ...] = field(default=(), compare=False, repr=False)

    @property
    def source(self) -> str:
        return "raw" if self.reason else "rewritten"

    @property
    def shown(self) -> Attempt | None:
        """The attempt that was kept, or the last one refused; None where none was made."""
        kept = [a for a in self.tried if not a.verdict.reason and a.text == self.text]
        return next(iter(kept or self.tried[::-1]), None)

    @property
    def wrong(self) -> bool | None:
        """Whether the target misses the record's gold answer; None where there is none."""
        if not self.record.answer:
            return None
        return check_answer(self.record, Rewrite(self.text, finished=True)) is not None

    @property
    def invents(self) -> bool:
        """Whether the target has a name or number that is in neither prompt nor raw response."""
        return invents_facts(self.record, Rewrite(self.text, finished=True)) is not None


def rewrite_records(
    teacher: Teacher,
    records: Sequence[Record],
    options: Distill,
    cache: Generations,
    seed: int,
    bar: Bar,
    gate: Gate,
) -> list[Rewritten]:
    """Rewrite a client's records, in order. The bar advances once for each record.

    A rewrite that the gate refuses is sampled again with a fresh seed, up to
    `options.attempts` times in all; then the raw response stays. Where shorter rewrites are
    preferred, accepted ones are sampled again too, and the shortest of them stays. A response that
    calls functions stays as it is: it is no text to be rewritten.
    """
    shorter = options.prefer == "shorter"
    done = {i: Rewritten(r, r.response, "calls", 0) for i, r in enumerate(records) if r.calls}
    waiting = [i for i in range(len(records)) if i not in done]
    bar.advance(len(done))
    for attempt in range(options.attempts):
        jobs = {i: rewriting_job(teacher.chat, records[i], options, seed, attempt) for i in waiting}
        for i in [i for i in waiting if len(jobs[i].prompt) + jobs[i].limit > teacher.context]:
            del jobs[i]
            done[i] = Rewritten(records[i], records[i].response, "too_long", attempt)
            bar.advance()
        temperature = options.temperature if attempt == 0 else options.retry_temperature
        for batch in generate_cached(teacher, jobs, options, temperature, cache):
            asked = {i: records[i] for i in batch}
            for i, tried in judge_answers(teacher.chat, asked, batch, gate, attempt).items():
                new = _only_attempt(records[i], tried, attempt)
                done[i] = _better(done.get(i), new, teacher.chat)
                again = attempt + 1 < options.attempts and (shorter or bool(done[i].reason))
                bar.advance(0 if again else 1)
        waiting = [i for i in jobs if shorter or done[i].reason]
    return [done[i] for i in range(len(records))]


def first_attempts_cached(
    teacher: Teacher, records: Sequence[Record], options: Distill, cache: Generations, seed: int
) -> Iterator[bool]:
    """For each record that is rewritten, whether the cache holds its first attempt."""
    for record in (each for each in records if not each.calls):
        job = rewriting_job(teacher.chat, record, options, seed, attempt=0)
        key = job_key(teacher.identity, job, options.temperature, options.generator)
        yield cache.get(key) is not None


def generate_cached(
    teacher: Teacher,
    jobs: dict[int, Job],
    options: Distill,
    temperature: float,
    cache: Generations,
) -> Iterable[dict[int, list[int]]]:
    """Groups of index -> new ids, sorted by length; `options.batch_size` rows of a group are
    generated at a time.

    The groups are those of the whole list, whatever the cache holds: a resumed distillation
    forms the same ones and so ends with the same texts, and a kill loses one of them at most.
    """
    rows, generate = options.batch_size, GENERATORS[options.generator]
    keys = {
        i: job_key(teacher.identity, job, temperature, options.generator) for i, job in jobs.items()
    }
    order = sorted(jobs, key=lambda i: (len(jobs[i].prompt), jobs[i].limit, i))
    size = REWRITE_GROUP * rows
    for start in range(0, len(order), size):
        group = order[start : start + size]
        found = {i: ids for i in group if (ids := cache.get(keys[i])) is not None}
        if len(found) < len(group):
            ends = teacher.chat.ends
            new = generate(teacher.model, [jobs[i] for i in group], ends, temperature, rows)
            found = dict(zip(group, new, strict=True))
            cache.put({keys[i]: ids for i, ids in found.items()})
        yield found


def judge_answers(
    chat: ChatFormat,
    records: Mapping[int, Record],
    batch: Mapping[int, list[int]],
    gate: Gate,
    attempt: int = 0,
) -> dict[int, Attempt]:
    """The gate's verdict on each generation of a batch, index -> ids.

    Thoughts are cut before the gate; without their end there is no text to judge.
    """
    answers = {i: chat.answer(ids) for i, ids in batch.items()}
    whole = [i for i, answer in answers.items() if not answer.unclosed]
    candidates = [
        Candidate(records[i], Rewrite(answers[i].text, chat.is_finished(batch[i])), attempt)
        for i in whole
    ]
    verdicts = dict(zip(whole, gate(candidates), strict=True))
    return {
        i: Attempt(
            answer.text,
            len(batch[i]),
            verdicts.get(i, Verdict("unclosed_thought")),
            chat.is_finished(batch[i]),
            answer.thought,
        )
        for i, answer in answers.items()
    }


def _only_attempt(record: Record, tried: Attempt, attempt: int) -> Rewritten:
    """The outcome of an attempt if it were the only one."""
    reason = tried.verdict.reason
    text = record.response if reason else tried.text
    return Rewritten(record, text, reason, attempt + 1, (tried,))


def _better(old: Rewritten | None, new: Rewritten, chat: ChatFormat) -> Rewritten:
    """The better of two outcomes: an accepted one, then the shorter, then the earlier."""
    if old is None:
        return new
    shorter = not new.reason and len(chat.response_ids(new.text)) < len(chat.response_ids(old.text))
    chosen = new if old.reason or shorter else old
    return replace(chosen, attempts=new.attempts, tried=(*old.tried, *new.tried))


def summarise_rewrites(rewrites: Sequence[Rewritten]) -> dict[str, Any]:
    """One client's row of distillation.json: counts, reasons, lengths, wrong ones."""
    accepted = [r for r in rewrites if not r.reason]
    checked = [r.wrong for r in accepted if r.wrong is not None]
    return {
        "records": len(rewrites),
        "rewritten": len(accepted),
        "fallbacks": dict(Counter(r.reason for r in rewrites if r.reason).most_common()),
        "attempts": sum(r.attempts for r in rewrites),
        "thought_tokens": sum(attempt.thought for r in rewrites for attempt in r.tried),
        "raw_words": _mean_words(r.record.response for r in rewrites),
        "rewrite_words": _mean_words(r.text for r in rewrites),
        "wrong": sum(checked) / len(checked) if checked else None,
        "checked": len(checked),
        "inventions": sum(r.invents for r in accepted),
    }


def sample_pairs(
    client: str, rewrites: Sequence[Rewritten], seed: int, count: int = 4
) -> list[dict[str, Any]]:
    """A few records side by side with their targets, wrong and refused ones among them."""

    def order(r: Rewritten) -> int:
        return seeds.derive_seed(seed, "pairs", r.record.instruction)

    shuffled = sorted(rewrites, key=order)
    kinds = [
        [r for r in shuffled if r.wrong],
        [r for r in shuffled if r.reason],
        [r for r in shuffled if not r.wrong and not r.reason],
    ]
    chosen = [group[i] for i in range(count) for group in kinds if i < len(group)][:count]
    return [
        {
            "client": client,
            "instruction": r.record.instruction,
            "raw": r.record.response,
            "rewrite": r.text,
            "source": r.source,
            "reason": r.reason,
            "wrong": r.wrong,
        }
        for r in chosen
    ]


def _mean_words(texts: Iterable[str]) -> float:
    lengths = [len(text.split()) for text in texts]
    return sum(lengths) / max(1, len(lengths))
