"""The models' answers to the questions: greedy, batched, and stored for later judgings."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.data.records import Turn
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.judge.journal import VerdictJournal
from fedsdr.judge.questions import JudgeQuestion
from fedsdr.model.base import LoadedModel, choose_device, choose_dtype
from fedsdr.model.identity import Identity, content_digest, identity_digest
from fedsdr.workflows.finished import Finished, Models

ANSWERS_FILE: Final = "judge/answers.jsonl"


@dataclass(frozen=True)
class ModelAnswer:
    """One turn's answer.

    cut: the answer was not finished after the allowed number of tokens.
    too_long: the conversation filled the model's context, so that there is no answer.
    """

    text: str
    cut: bool = False
    too_long: bool = False


Answers = dict[str, tuple[ModelAnswer, ...]]  # question id -> an answer a turn


def answers_of(
    run: Finished,
    names: Sequence[str],
    questions: Sequence[JudgeQuestion],
    limit: int,
    batch_size: int,
    reporter: Reporter,
) -> list[Answers]:
    """The answers of the run's models of these names, of at most `limit` new tokens a turn.

    Turn by turn, since a later one builds on the answers to those before. The base model is
    loaded only where an answer is missing, or where the run does not say what it was.
    """
    journal = VerdictJournal(run.folder / ANSWERS_FILE)
    models: Models | None = None
    if not (base := run.base_identity()):
        models = Models(run, reporter)
        base = models.base.identity
    makers = {name: _maker(run, name, base) for name in names}
    for name, maker in makers.items():
        keys = [(q, turn) for q in questions for turn in range(len(q.turns))]
        missing = [(q, t) for q, t in keys if journal.get(_key(maker, q, t, limit)) is None]
        if not missing:
            continue
        if models is None:
            models = Models(run, reporter)
        models.use(name)
        with reporter.bar(f"answers of {name}", len(missing)) as bar:
            for turn in sorted({turn for _, turn in missing}):
                todo = [q for q, t in missing if t == turn]
                for chunk in _batches(models.base, journal, maker, todo, turn, limit, batch_size):
                    bar.advance(chunk)
    return [
        {q.id: _stored(journal, maker, q, len(q.turns), limit) for q in questions}
        for maker in makers.values()
    ]


def _batches(
    base: LoadedModel,
    journal: VerdictJournal,
    maker: str,
    questions: Sequence[JudgeQuestion],
    turn: int,
    limit: int,
    batch_size: int,
) -> Iterator[int]:
    """Answer one turn of the questions; yields how many each batch has answered."""
    prompts = {}
    for q in questions:
        before = _stored(journal, maker, q, turn, limit)
        prompts[q.id] = base.chat.prompt_ids(_conversation(q, before))
    order = sorted(questions, key=lambda q: (len(prompts[q.id]), q.id))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        room = {q.id: min(limit, base.context - len(prompts[q.id])) for q in batch}
        jobs = {q.id: Job(prompts[q.id], room[q.id]) for q in batch if room[q.id] > 0}
        new = generate_batch(base.model, list(jobs.values()), base.chat.ends) if jobs else []
        said = {
            name: ModelAnswer(base.chat.text(ids), cut=not base.chat.is_finished(ids))
            for name, ids in zip(jobs, new, strict=True)
        }
        silent = ModelAnswer("", too_long=True)
        journal.append(
            {"key": _key(maker, q, turn, limit), **asdict(said.get(q.id, silent))} for q in batch
        )
        yield len(batch)


def _conversation(question: JudgeQuestion, before: Sequence[ModelAnswer]) -> tuple[Turn, ...]:
    """The turns so far, the last one the user's."""
    turns = []
    for text, answer in zip(question.turns, before, strict=False):
        turns += [Turn("user", text), Turn("assistant", answer.text)]
    return (*turns, Turn("user", question.turns[len(before)]))


def _stored(
    journal: VerdictJournal, maker: str, question: JudgeQuestion, turns: int, limit: int
) -> tuple[ModelAnswer, ...]:
    rows = [journal.get(_key(maker, question, turn, limit)) for turn in range(turns)]
    answers = []
    for row in rows:
        assert row is not None
        try:
            answers.append(ModelAnswer(**{name: row[name] for name in ("text", "cut", "too_long")}))
        except KeyError as error:
            raise UserError(f"{journal.path} is damaged: delete it, and it is made anew") from error
    return tuple(answers)


def _maker(run: Finished, name: str, base: Identity) -> str:
    """A digest of the answering model, including its dtype, on which answers may depend."""
    options = run.recipe.model
    dtype = choose_dtype(run.recipe.dtype, choose_device(options.device))
    here = {**base, "dtype": str(dtype).removeprefix("torch.")}
    return identity_digest(run.identity(name, here))


def _key(maker: str, question: JudgeQuestion, turn: int, limit: int) -> str:
    return content_digest([maker, question.turns[: turn + 1], limit])
