"""Likelihoods of choices that share a prompt, against every text by itself."""

import pytest
import torch

from fedsdr.generation import continuations
from fedsdr.generation.continuations import Continued, choice_likelihoods
from support.tiny_models import FAMILIES, make

QUESTIONS = [
    Continued((1, 2, 3), ((4, 5), (6,), (7, 8, 9))),
    Continued((5, 4, 3, 2, 9, 8, 7), ((4,), (4, 4))),
    Continued((9,), ((11, 12, 13, 14), (2,), (3,), (5,))),
]


@torch.no_grad()
def reference(model, question: Continued) -> list[float]:
    """-loss of transformers itself, with the prompt masked out of the labels."""
    found = []
    for choice in question.continuations:
        ids = torch.tensor([[*question.prompt, *choice]])
        labels = ids.clone()
        labels[:, : len(question.prompt)] = -100
        found.append(-float(model(input_ids=ids, labels=labels).loss))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_mean_log_likelihood_of_a_token(family):
    model = make(family)
    for found, question in zip(choice_likelihoods(model, QUESTIONS), QUESTIONS, strict=True):
        assert found == pytest.approx(reference(model, question), abs=1e-4)


def test_a_model_that_cannot_share_prompts_scores_text_by_text(monkeypatch):
    model = make("llama")
    monkeypatch.setattr(continuations, "passes_trial", lambda *_: False)
    monkeypatch.setattr(continuations, "continuation_likelihoods", None)
    [found] = choice_likelihoods(model, QUESTIONS[:1])
    assert found == pytest.approx(reference(model, QUESTIONS[0]), abs=1e-4)


def test_more_questions_than_a_batch_keep_their_order(monkeypatch):
    monkeypatch.setattr(continuations, "PROMPTS_AT_ONCE", 2)
    model = make("gpt2")
    whole = [score for each in choice_likelihoods(model, QUESTIONS) for score in each]
    alone = [score for each in QUESTIONS for score in choice_likelihoods(model, [each])[0]]
    assert whole == pytest.approx(alone, abs=1e-4)
    assert choice_likelihoods(model, []) == []
