"""Which prompt to rewrite with: each is tried on the same records, and its rewrites are counted."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final, NamedTuple

from fedsdr.core.errors import UserError
from fedsdr.core.statistics import sign_test
from fedsdr.data.records import Record
from fedsdr.distillation.checks import Rewrite
from fedsdr.distillation.rewrite import Rewritten
from fedsdr.distillation.verify import PLAIN_CHECKS
from fedsdr.recipe.sections.prompts import resolve_prompt

FAULTS: Final = ("truncated", "no_answer", "invention")  # checks, each applied by itself
NO_TEXT: Final = Rewrite("", finished=True)
TEST_LEVEL: Final = 0.05


class PromptTrial(NamedTuple):
    """What a prompt gave on a sample of records.

    accepted: records of which the gate accepted a rewrite, within the recipe's attempts.
    sound: of each record, whether a rewrite was accepted that is none of unchanged, faulty, wrong.
    unchanged: accepted rewrites that are the raw response itself, so that nothing is gained.
    faults: first attempts that a check of `FAULTS` refuses, whether it is in the gate or not.
    wrong: of the `checked` accepted rewrites whose right answer is known, those that miss it.
    words: of an accepted rewrite, mean. tokens: generated, in all attempts. seconds: for these.
    """

    name: str
    text: str
    accepted: int
    sound: tuple[bool, ...]
    unchanged: int
    faults: Mapping[str, int]
    wrong: int
    checked: int
    words: float
    tokens: int
    seconds: float

    @property
    def records(self) -> int:
        return len(self.sound)


def count_trial(name: str, text: str, rewrites: Sequence[Rewritten], seconds: float) -> PromptTrial:
    """Count what became of a sample that was rewritten with one prompt."""
    accepted = [each for each in rewrites if not each.reason]
    verdicts = [wrong_answer(each.record, each.text) for each in accepted]
    firsts = [
        (each.record, Rewrite(each.tried[0].text, each.tried[0].finished))
        for each in rewrites
        if each.tried
    ]
    return PromptTrial(
        name,
        text,
        accepted=len(accepted),
        sound=tuple(map(is_sound, rewrites)),
        unchanged=sum(map(is_unchanged, accepted)),
        faults={fault: sum(is_refused(fault, *each) for each in firsts) for fault in FAULTS},
        wrong=sum(verdict is True for verdict in verdicts),
        checked=sum(verdict is not None for verdict in verdicts),
        words=fmean(len(each.text.split()) for each in accepted) if accepted else 0.0,
        tokens=sum(attempt.tokens for each in rewrites for attempt in each.tried),
        seconds=seconds,
    )


def is_sound(rewritten: Rewritten) -> bool:
    """Whether a rewrite was accepted that is new and an answer, invents nothing, and is right."""
    if rewritten.reason or is_unchanged(rewritten):
        return False
    record, text = rewritten.record, Rewrite(rewritten.text, finished=True)
    faulty = any(is_refused(fault, record, text) for fault in FAULTS)
    return not (faulty or wrong_answer(record, rewritten.text))


def is_unchanged(rewritten: Rewritten) -> bool:
    """Whether a rewrite is the raw response, but for white space."""
    return rewritten.text.split() == rewritten.record.response.split()


def wrong_answer(record: Record, text: str) -> bool | None:
    """Whether a text misses the right answer: the record's gold one, or else the number or label
    of its raw response. None where the record has neither."""
    names = ("answer",) if record.answer else ("number", "label")
    # A check has something to compare with where it refuses an empty text.
    applying = [name for name in names if is_refused(name, record, NO_TEXT)]
    rewrite = Rewrite(text, finished=True)
    return any(is_refused(name, record, rewrite) for name in applying) if applying else None


def is_refused(check: str, record: Record, rewrite: Rewrite) -> bool:
    """Whether a check of the two texts alone refuses a rewrite."""
    return PLAIN_CHECKS[check](record, rewrite) is not None


def best_trial(trials: Sequence[PromptTrial]) -> PromptTrial:
    """The one with the most sound rewrites, then the fewest tokens, then the first."""
    return min(trials, key=lambda trial: (-sum(trial.sound), trial.tokens))


def indistinct_trials(best: PromptTrial, trials: Sequence[PromptTrial]) -> list[PromptTrial]:
    """Those which the sample does not show to be worse: McNemar's exact test on the records, two
    sided, at 5 %, without a correction for the number of prompts."""
    return [each for each in trials if each is not best and not _is_worse(each, best)]


def _is_worse(trial: PromptTrial, best: PromptTrial) -> bool:
    pairs = list(zip(trial.sound, best.sound, strict=True))
    gains, losses = pairs.count((True, False)), pairs.count((False, True))
    p = sign_test(gains, losses)
    return p is not None and losses > 0 and p < TEST_LEVEL


def read_prompts(path: Path) -> dict[str, str]:
    """A user's prompts, name -> text: of a TOML file its keys; any other file is one prompt.

    Raises `UserError` for what cannot be read, and for a prompt that could not be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
        prompts = tomllib.loads(text) if path.suffix == ".toml" else {path.stem: text.strip()}
    except (OSError, ValueError, RecursionError) as error:  # ValueError: wrong UTF-8 or TOML
        raise UserError(f"cannot read the prompts {path}: {error}") from error
    if not prompts:
        raise UserError(f'{path} has no prompt: write name = "a text with {{instruction}} ..."')
    return check_prompts(prompts, str(path))


def check_prompts(prompts: Mapping[str, object], place: str) -> dict[str, str]:
    """Name -> text, with names of shipped prompts resolved; `UserError` names what is wrong."""
    texts = {}
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            raise UserError(f'{place}: {name} is {prompt!r:.60}: write {name} = "a text"')
        try:
            texts[name] = resolve_prompt(prompt)
        except ValueError as error:
            raise UserError(f"{place}: {name} = {prompt!r:.60}: {error}") from error
    return texts
