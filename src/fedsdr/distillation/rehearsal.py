"""Rehearsal: prompts that the base model writes, with its own answers.

Training on some facts makes a model forget others. It can rehearse these without anyone's data:
from the beginning of a user's turn it continues with a prompt of its own (Magpie, arXiv
2406.08464), and its greedy answers to such prompts are learnt with the clients' records
(self-synthesized rehearsal, arXiv 2403.01244). An answer that is cut is learnt as far as it goes:
to leave out long answers would teach the model to be brief. Where prompts are given, it only
answers.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Final, NamedTuple

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.data.example import Example
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.distillation.cache import Generations
from fedsdr.distillation.rewrite import generate_cached
from fedsdr.distillation.teacher import Teacher
from fedsdr.generation.sampling import Job
from fedsdr.recipe.sections.distill import Distill
from fedsdr.recipe.sections.rehearsal import Rehearsal

ATTEMPTS: Final = 4  # at prompts that are whole and different
PLACE: Final = "PLACEHOLDER"  # a user's words, in a template


class UserFrame(NamedTuple):
    """What a template writes before and after the words of a first user's turn."""

    before: str
    after: str


class Rehearsed(NamedTuple):
    """A prompt and the base model's answer to it, as text and as token ids."""

    prompt: str
    answer: str
    ids: tuple[int, ...]

    def example(self, chat: ChatFormat, max_length: int) -> Example | None:
        """What is learnt of it, cut to `max_length` tokens; None where not even the prompt fits."""
        prompt = chat.prompt_ids((Turn("user", self.prompt),))
        response = self.ids[: max(0, max_length - len(prompt))]
        return Example(tuple(prompt), response) if response else None


def generate_rehearsal(
    teacher: Teacher,
    options: Rehearsal,
    distill: Distill,
    cache: Generations,
    seed: int,
    prompts: Sequence[str] = (),
) -> list[Rehearsed]:
    """At most `options.count` prompts with answers; prompts: given ones, instead of sampled.

    distill: how texts are generated. What does not fit into the model's context is cut, and left
    out where not even its prompt does. Raises `UserError` where nothing is left.
    """
    chosen = [*dict.fromkeys(prompts)][: options.count]
    chosen = chosen or sampled_prompts(teacher, options, distill, cache, seed)
    asked = {i: teacher.chat.prompt_ids((Turn("user", each),)) for i, each in enumerate(chosen)}
    room = {i: teacher.context - len(ids) for i, ids in asked.items()}
    jobs = {
        i: Job(ids, min(options.answer_tokens, room[i])) for i, ids in asked.items() if room[i] > 0
    }
    answers = _generated(teacher, jobs, distill, 0.0, cache)
    texts = {i: (teacher.chat.text(ids), tuple(ids)) for i, ids in answers}
    found = [Rehearsed(chosen[i], text, ids) for i, (text, ids) in sorted(texts.items()) if text]
    if not found:
        raise UserError(
            f"rehearsal.share = {options.share:g} needs prompts and answers that the base model "
            f"writes. Within rehearsal.prompt_tokens = {options.prompt_tokens} it ended "
            f"{len(chosen)} prompts, and answered none of them: raise that, or set "
            "rehearsal.share = 0"
        )
    return found


def sampled_prompts(
    teacher: Teacher, options: Rehearsal, distill: Distill, cache: Generations, seed: int
) -> list[str]:
    """Different prompts, each continued by the model from the beginning of a user's turn."""
    frame, found = user_frame(teacher.chat), dict[str, None]()
    # A template that begins with the user's words begins as every text does.
    opening = teacher.chat.ids(frame.before) or [teacher.chat.end_of_turn]
    limit = min(options.prompt_tokens, teacher.context - len(opening))
    for attempt in range(ATTEMPTS):
        jobs = {
            i: Job(opening, limit, seeds.derive_seed(seed, "rehearse", attempt, i))
            for i in range(options.count - len(found))
        }
        for _, ids in sorted(_generated(teacher, jobs, distill, options.temperature, cache)):
            if text := _whole_prompt(teacher.chat, ids, frame.after):
                found[text] = None
    return [*found]


def user_frame(chat: ChatFormat) -> UserFrame:
    """Of a template, as it asks a first question."""
    before, _, after = chat.prompt_text((Turn("user", PLACE),)).partition(PLACE)
    return UserFrame(before, after)


def _whole_prompt(chat: ChatFormat, ids: list[int], after: str) -> str:
    """The words of a user's turn, if the model ended it; else "". It ends at the first control
    token, or where what follows a turn begins with words or a line break: there."""
    ends = chat.ends | chat.control.ids
    words = [*takewhile(lambda token: token not in ends, ids)]
    mark = next(iter(after.split()), after)
    text, ended, _ = chat.text(words).partition(mark) if mark else (chat.text(words), "", "")
    return text.strip() if ended or len(words) < len(ids) else ""


def _generated(
    teacher: Teacher,
    jobs: dict[int, Job],
    distill: Distill,
    temperature: float,
    cache: Generations,
) -> Iterable[tuple[int, list[int]]]:
    for group in generate_cached(teacher, jobs, distill, temperature, cache):
        yield from group.items()
