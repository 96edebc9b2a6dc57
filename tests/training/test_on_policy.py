"""On-policy learning: whose responses, from which draws, and what becomes of refused ones."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsdr.algorithms.contract import Loss, Stage
from fedsdr.data.example import Example, Reference
from fedsdr.data.template import ChatFormat
from fedsdr.distillation.checks import Candidate, Verdict
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.training.on_policy import OnPolicySampler
from support.cohort_trainers import RECORD, turned_round
from support.tiny_models import random_ids, tokenizer
from support.training_stages import SHORT, R, S, adapter, new_model, trainer

CHAT = ChatFormat(tokenizer())
GIVEN = [
    Example(tuple(ids[:3]), tuple(ids[3:5]), Reference(tuple(ids), 6, RECORD))
    for ids in random_ids(4, 9, seed=3).tolist()
]


def passing(candidates: Sequence[Candidate]) -> list[Verdict]:
    return [Verdict() for _ in candidates]


def refusing(*places: int) -> Callable[[Sequence[Candidate]], list[Verdict]]:
    return lambda given: [Verdict("no" if i in places else "") for i in range(len(given))]


@pytest.fixture
def model() -> Any:
    two = new_model()
    two.activate(R, S)
    return two.model


def test_responses_are_sampled_from_the_plain_prompt_by_the_model_as_it_stands(model):
    sampled = OnPolicySampler(CHAT, passing, rows=2)(model, GIVEN, [5, 6, 7, 8])
    jobs = [Job(each.prompt, 6, draw) for each, draw in zip(GIVEN, [5, 6, 7, 8], strict=True)]
    wanted = [tuple(ids) for ids in generate_batch(model, jobs, CHAT.ends, temperature=1.0)]
    assert [each.response for each in sampled] == wanted
    assert [(e.prompt, e.reference) for e in sampled] == [(e.prompt, e.reference) for e in GIVEN]
    assert len({*wanted}) > 1
    assert max(map(len, wanted)) <= 6
    off = new_model().model  # whose streams are off
    others = OnPolicySampler(CHAT, passing, rows=2)(off, GIVEN, [5, 6, 7, 8])
    assert [each.response for each in others] != wanted


def test_a_refused_response_leaves_the_words_of_the_target_without_a_teacher(model):
    sampled = OnPolicySampler(CHAT, refusing(1, 3), rows=4)(model, GIVEN, [5, 6, 7, 8])
    for i in (1, 3):
        assert sampled[i] == replace(GIVEN[i], reference=None)
    for i in (0, 2):
        assert sampled[i].reference == GIVEN[i].reference
        assert sampled[i].response != GIVEN[i].response


def test_an_example_without_a_reference_is_not_sampled(model):
    plain = replace(GIVEN[0], reference=None)
    sampled = OnPolicySampler(CHAT, passing, rows=4)(model, [plain, GIVEN[1]], [5, 6])
    assert sampled[0] is plain
    assert sampled[1] == OnPolicySampler(CHAT, passing, rows=4)(model, [GIVEN[1]], [6])[0]
    assert OnPolicySampler(CHAT, passing, rows=4)(model, [plain], [5]) == [plain]


def test_checks_see_text_record_and_the_base_model(model):
    seen = []

    def gate(candidates: Sequence[Candidate]) -> list[Verdict]:
        seen.extend(candidates)
        assert not any(getattr(layer, "active", ()) for layer in model.modules())
        return passing(candidates)

    sampled = OnPolicySampler(CHAT, gate, rows=4)(model, GIVEN, [5, 6, 7, 8])
    assert [each.record for each in seen] == [RECORD] * len(GIVEN)
    assert [each.rewrite.text for each in seen] == [CHAT.text([*e.response]) for e in sampled]
    finished = [e.response[-1] in CHAT.ends for e in sampled]
    assert [each.rewrite.finished for each in seen] == finished
    assert any(getattr(layer, "active", ()) for layer in model.modules())


def test_draws_are_of_client_round_stage_step_and_place():
    asked: list[tuple[int, ...]] = []

    def noted(model: Any, examples: Sequence[Example], draws: Sequence[int]) -> list[Example]:
        asked.append(tuple(draws))
        return turned_round(model, examples, draws)

    stage = Stage("x", "R", SHORT, adapter(1), loss=Loss("on_policy"))
    for changes in ({}, {"client": "b"}, {"round": 3}, {"seed": 6}, {}):
        fit = trainer(new_model(), sampler=noted, **changes)
        fit.examples = {"raw": GIVEN}
        fitted = fit(stage)
    fit(replace(stage, name="y"))
    steps = [asked[i : i + SHORT.steps] for i in range(0, len(asked), SHORT.steps)]
    assert steps[0] == steps[4], "a resumed round is the same"
    distinct = {draw for each in (*steps[:4], steps[5]) for step in each for draw in step}
    assert len(distinct) == 5 * SHORT.steps * 3
    assert fitted.loss.value > 0


def test_an_on_policy_step_is_a_soft_one_at_the_sampled_words():
    """The gradient does not go through the sampling."""
    stage = Stage("x", "R", replace(SHORT, steps=1), adapter(1), loss=Loss("on_policy", "reverse"))
    fit = trainer(new_model(), sampler=turned_round)
    fit.examples = {"raw": GIVEN}
    found = fit(stage)
    soft = trainer(new_model())
    soft.examples = {"raw": GIVEN}
    chosen = fit.responding(stage, 0, next(fit.batches(stage)))
    soft.batches = lambda stage: iter([chosen])
    wanted = soft(replace(stage, loss=Loss("soft", "reverse")))
    assert found.loss == wanted.loss
    for key in found.shared:
        assert torch.equal(found.shared[key], wanted.shared[key])
