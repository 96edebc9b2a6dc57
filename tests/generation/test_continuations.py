"""Continuations of common prompts have the likelihoods of each text alone, and cost less."""

from typing import Any

import pytest
import torch

from fedsdr.generation.continuations import (
    Continued,
    continuation_likelihoods,
    continuation_logits,
    shares_beginnings,
    shares_prompts,
)
from fedsdr.model.trials import passes_trial
from support import tiny_models


def texts(*lengths: int, seed: int) -> list[list[int]]:
    return [
        tiny_models.random_ids(1, length, 100 * seed + i)[0].tolist()
        for i, length in enumerate(lengths)
    ]


def questions() -> list[Continued]:
    """Prompts of unequal length, whose continuations have one token and several, equal ones too."""
    prompts = texts(12, 3, 7, 1, 7, seed=1)
    lengths = ((1, 4, 2), (3, 3), (1, 1, 1), (9, 1, 1, 1, 2), (6,))
    asked = [
        Continued(prompt, texts(*each, seed=2 + i))
        for i, (prompt, each) in enumerate(zip(prompts, lengths, strict=True))
    ]
    return [*asked, Continued(prompts[1], [[7, 8], [7, 8]])]


def plain_likelihood(model: Any, prompt: Any, continuation: Any) -> tuple[float, bool]:
    """Of one text alone, by the definition."""
    ids = torch.tensor([[*prompt, *continuation]])
    found = tiny_models.logits(model, ids)[0].log_softmax(-1)[len(prompt) - 1 : -1]
    nats = sum(float(row[token]) for row, token in zip(found, continuation, strict=True))
    return nats, found.argmax(-1).tolist() == list(continuation)


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_likelihoods_are_those_of_each_text_alone(family, rows):
    model = tiny_models.make(family)
    assert passes_trial(model, shares_prompts)
    asked = questions()
    asked[0] = asked[0]._replace(continuations=[*asked[0].continuations, greedy(model, asked[0])])
    found = list(continuation_likelihoods(model, asked, rows))
    for each, likelihoods in zip(asked, found, strict=True):
        wanted = [plain_likelihood(model, each.prompt, text) for text in each.continuations]
        assert [x.nats for x in likelihoods] == pytest.approx([n for n, _ in wanted], abs=1e-4)
        assert [x.greedy for x in likelihoods] == [g for _, g in wanted]
    assert found[0][-1].greedy


def greedy(model: Any, asked: Continued) -> list[int]:
    written: list[int] = []
    for _ in range(3):
        ids = torch.tensor([[*asked.prompt, *written]])
        written.append(int(tiny_models.logits(model, ids)[0, -1].argmax()))
    return written


def test_a_prompt_is_read_once_for_all_of_its_continuations():
    model, read = tiny_models.make("llama"), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompt = texts(40, seed=1)[0]
    continuation_logits(model, [Continued(prompt, texts(5, 5, 5, 5, seed=2))])
    assert read == [(1, 40), (4, 4)]
    read.clear()
    continuation_logits(model, [Continued(prompt, [[5], [6], [7], [8]])])
    assert read == [(1, 40)]


def test_a_batch_has_no_more_rows_than_fit():
    model, read = tiny_models.make("llama"), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    two, nine = texts(2, 2, seed=1), texts(*[2] * 9, seed=2)
    asked = [Continued([7, 8], each) for each in (two, two, two, nine, nine, two)]
    assert [len(each) for each in continuation_likelihoods(model, asked, rows=2)] == [
        2, 2, 2, 9, 9, 2,
    ]  # fmt: skip
    assert read == [2, 4, 1, 2, 1, 9, 1, 9, 1, 2]  # prompts, then their continuations


def test_a_model_whose_cache_is_wrong_fails_the_trial():
    model = tiny_models.make("llama")
    real = model.forward

    def forgets(*args: Any, **options: Any) -> Any:
        """As architectures do that ignore where a row begins."""
        return real(*args, **{**options, "attention_mask": None})

    model.forward = forgets
    assert not passes_trial(model, shares_prompts)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_common_beginning_is_read_once_and_changes_nothing(family, monkeypatch):
    """Longer than the window of this Gemma, which reads the whole of each prompt therefore."""
    model = tiny_models.make(family)
    beginning = texts(9, seed=9)[0]
    asked = [each._replace(prompt=[*beginning, *each.prompt]) for each in questions()]
    assert passes_trial(model, shares_beginnings) == (family != "gemma")
    read: list[int] = []
    forward = type(model).forward

    def counted(self, *args, input_ids, **options):
        read.append(input_ids.numel())
        return forward(self, *args, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    found = list(continuation_likelihoods(model, asked, rows=len(asked)))
    if family != "gemma":
        assert read[0] == len(beginning)
        assert read[1] == len(asked) * max(len(each.prompt) - len(beginning) for each in asked)
    for each, likelihoods in zip(asked, found, strict=True):
        wanted = [plain_likelihood(model, each.prompt, text)[0] for text in each.continuations]
        assert [x.nats for x in likelihoods] == pytest.approx(wanted, abs=1e-4)
