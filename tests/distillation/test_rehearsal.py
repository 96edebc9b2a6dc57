"""Rehearsal: prompts that the base model samples, its answers, and what is discarded of them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.distillation import rehearsal, rewrite
from fedsdr.distillation.cache import RewriteCache
from fedsdr.distillation.rehearsal import Rehearsed, generate_rehearsal, sampled_prompts, user_frame
from fedsdr.distillation.teacher import Teacher
from fedsdr.generation.sampling import Job
from fedsdr.recipe.sections.distill import Distill
from fedsdr.recipe.sections.rehearsal import Rehearsal
from support.rewriting import CHAT
from support.tiny_models import tokenizer

TEACHER = Teacher(None, CHAT, "a model", 64)
FEW = Rehearsal(share=0.5, count=3, prompt_tokens=8, answer_tokens=6)


def script(monkeypatch: pytest.MonkeyPatch, says: Callable[[Job, float], list[int]]) -> list[Any]:
    """Put `says(job, temperature)` in the model's place; returns the batches that are asked."""
    calls: list[Any] = []

    def generate(model: Any, jobs: Sequence[Job], stop: Any, temperature: float, rows: int) -> Any:
        calls.append((list(jobs), temperature))
        return [says(job, temperature) for job in jobs]

    monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", generate)
    return calls


def asked(prompt: str) -> list[int]:
    return CHAT.prompt_ids((Turn("user", prompt),))


def test_prompts_are_sampled_from_the_beginning_of_a_users_turn_and_answered_greedily(
    tmp_path, monkeypatch
):
    thought_of = iter(["one", "the name", "two"])

    def says(job: Job, temperature: float) -> list[int]:
        return CHAT.response_ids(next(thought_of) if temperature else "is ten")

    calls = script(monkeypatch, says)
    with RewriteCache(tmp_path / "cache.sqlite") as cache:
        found = generate_rehearsal(TEACHER, FEW, Distill(), cache, seed=0)
        ids = tuple(CHAT.response_ids("is ten"))
        assert found == [Rehearsed(p, "is ten", ids) for p in ("one", "the name", "two")]
        (prompts, warm), (answers, cold) = calls
        assert (warm, cold) == (1.0, 0.0)
        opening = CHAT.ids(user_frame(CHAT).before)
        assert [list(job.prompt) for job in prompts] == [opening] * 3
        assert len({job.seed for job in prompts}) == 3
        assert {job.limit for job in prompts} == {8}
        assert sorted(list(job.prompt) for job in answers) == sorted(
            asked(each) for each in ("one", "the name", "two")
        )
        assert {job.limit for job in answers} == {6}
        assert generate_rehearsal(TEACHER, FEW, Distill(), cache, seed=0) == found
        assert len(calls) == 2  # the second time all is in the cache


def test_prompts_that_are_cut_empty_or_twice_there_are_sampled_again(tmp_path, monkeypatch):
    end = CHAT.end_of_turn
    cut = CHAT.response_ids("one")[:-1]
    two, name = CHAT.response_ids("two"), CHAT.response_ids("the name")
    written = iter([cut, [end], two, two, name, two, two])
    calls = script(monkeypatch, lambda job, temperature: next(written))
    with RewriteCache(tmp_path / "cache.sqlite") as cache:
        assert sampled_prompts(TEACHER, FEW, Distill(), cache, seed=0) == ["two", "the name"]
    assert [len(jobs) for jobs, _ in calls] == [3, 2, 1, 1]  # as many as are missing


def test_a_prompt_ends_where_a_control_token_stands(tmp_path, monkeypatch):
    """The model writes on, the template's mark and its own answer: neither is of the prompt."""
    mark = CHAT.ids(user_frame(CHAT).after)
    answer = CHAT.response_ids("is ten")
    assert mark[0] in CHAT.control.ids
    script(monkeypatch, lambda job, temperature: [*CHAT.ids("one"), *mark, *answer])
    with RewriteCache(tmp_path / "cache.sqlite") as cache:
        assert sampled_prompts(TEACHER, FEW, Distill(), cache, seed=0) == ["one"]


def test_what_does_not_fit_into_the_context_is_cut_or_left_out(tmp_path, monkeypatch):
    small = Teacher(None, CHAT, "a model", len(asked("the name")) + 2)
    calls = script(monkeypatch, lambda job, temperature: CHAT.response_ids("is ten")[: job.limit])
    with RewriteCache(tmp_path / "cache.sqlite") as cache:
        given = ("the name", "the name is one two ten")
        found = generate_rehearsal(small, FEW, Distill(), cache, 0, given)
    assert [(each.prompt, len(each.ids)) for each in found] == [("the name", 2)]
    [(jobs, _)] = calls
    assert [job.limit for job in jobs] == [2]


def test_a_cut_answer_is_learnt_as_far_as_it_goes_and_an_empty_one_is_discarded(
    tmp_path, monkeypatch
):
    whole = CHAT.response_ids("is ten")
    answers = {"one": whole, "two": whole[:-1], "the": [CHAT.end_of_turn]}
    of_prompt = {tuple(asked(prompt)): ids for prompt, ids in answers.items()}
    script(monkeypatch, lambda job, temperature: of_prompt[tuple(job.prompt)])
    with RewriteCache(tmp_path / "cache.sqlite") as cache:
        found = generate_rehearsal(TEACHER, FEW, Distill(), cache, 0, ("one", "two", "the"))
        assert [(each.prompt, each.ids) for each in found] == [
            ("one", tuple(whole)),
            ("two", tuple(whole[:-1])),  # no end of turn that the model did not write
        ]
        with pytest.raises(UserError, match="ended 1 prompts, and answered none"):
            generate_rehearsal(TEACHER, FEW, Distill(), cache, 0, ("the",))


def test_given_prompts_are_asked_once_each_and_no_more_than_the_count(tmp_path, monkeypatch):
    calls = script(monkeypatch, lambda job, temperature: CHAT.response_ids("is ten"))
    with RewriteCache(tmp_path / "cache.sqlite") as cache:
        found = generate_rehearsal(TEACHER, FEW, Distill(), cache, 0, ("a", "b", "a", "c", "d"))
    assert [each.prompt for each in found] == ["a", "b", "c"]
    assert [temperature for _, temperature in calls] == [0.0]


PLAIN = (
    "{% for m in messages %}{{ m['content'] }} {{ 'rewrite' if m['role'] == 'user' }} {% endfor %}"
)


def test_a_template_without_tokens_of_its_own_ends_a_turn_by_its_words(tmp_path, monkeypatch):
    """The model writes on, into the answer: what stands before is the prompt."""
    chat = ChatFormat(tokenizer(PLAIN))
    assert user_frame(chat) == ("", " rewrite ")
    written = iter(["one rewrite two", "one", "the name rewrite"])
    script(monkeypatch, lambda job, temperature: chat.ids(next(written)))
    monkeypatch.setattr(rehearsal, "ATTEMPTS", 1)
    with RewriteCache(tmp_path / "cache.sqlite") as cache:
        teacher = Teacher(None, chat, "a model", 64)
        assert sampled_prompts(teacher, FEW, Distill(), cache, 0) == ["one", "the name"]


def test_an_example_is_the_template_s_prompt_and_what_fits_of_the_answer():
    ids = CHAT.response_ids("is ten")
    rehearsed, prompt = Rehearsed("one", "is ten", tuple(ids)), asked("one")
    for room in range(1, len(ids) + 2):
        example = rehearsed.example(CHAT, len(prompt) + room)
        assert example
        assert list(example.prompt) == prompt
        assert list(example.response) == ids[:room]
    assert rehearsed.example(CHAT, len(prompt)) is None
    assert rehearsed.example(CHAT, len(prompt) - 1) is None
