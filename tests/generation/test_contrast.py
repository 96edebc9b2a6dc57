"""Contrastive generation: what the own prompt adds to another one decides."""

from dataclasses import replace

import pytest
import torch

from fedsdr.generation import batched
from fedsdr.generation.batched import GenerationMode, generate_batch, generation_mode
from fedsdr.generation.contrast import contrasted_logits
from fedsdr.generation.sampling import Contrast, Job
from support.tiny_models import FAMILIES, logits, make, random_ids

NEVER = 59
PROMPTS = [random_ids(1, length, seed)[0].tolist() for seed, length in enumerate((3, 9, 5, 14))]
STRENGTHS, FLOORS = (0.5, 1.0, 2.0, 5.0), (0.1, 0.9, 0.01, 0.1)
JOBS = [
    Job(prompt, 8, seed, Contrast(other, strength, floor))
    for seed, (prompt, other, strength, floor) in enumerate(
        zip(PROMPTS, PROMPTS[1:] + PROMPTS[:1], STRENGTHS, FLOORS, strict=True)
    )
]


def test_contrast_is_counted_by_hand():
    p, q = torch.tensor([[0.5, 0.46, 0.04]]), torch.tensor([[0.8, 0.1, 0.1]])
    found = contrasted_logits(p.log(), q.log(), torch.tensor([1.0]), torch.tensor([0.1]))
    # 0.5^2 / 0.8, 0.46^2 / 0.1, and 0.04 is less than a tenth of 0.5
    assert found.softmax(-1)[0].tolist() == pytest.approx([0.3125 / 2.4285, 2.116 / 2.4285, 0])


def test_the_floor_is_a_share_of_the_likeliest_token_of_each_row():
    p = torch.tensor([[0.5, 0.46, 0.04]]).log().repeat(3, 1)
    found = contrasted_logits(p, p.flip(-1), torch.ones(3), torch.tensor([0.05, 0.5, 1.0]))
    assert found.isfinite().tolist() == [
        [True, True, True],
        [True, True, False],
        [True] + [False] * 2,
    ]


def test_without_strength_a_row_is_what_it_was():
    own, other = torch.randn(2, 7), torch.randn(2, 7)
    found = contrasted_logits(own, other, torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.1]))
    assert torch.allclose(found[0].softmax(-1), own[0].softmax(-1))
    assert not torch.allclose(found[1].softmax(-1), own[1].softmax(-1))


def plainly(model, job: Job) -> list[int]:
    """Greedy, the whole texts read anew for each token, by transformers' own forward pass."""
    assert job.contrast is not None
    written: list[int] = []
    while len(written) < job.limit and written[-1:] != [NEVER]:
        p, q = (
            logits(model, torch.tensor([[*ids, *written]]))[0, -1].log_softmax(-1)
            for ids in (job.prompt, job.contrast.prompt)
        )
        score = (1 + job.contrast.strength) * p - job.contrast.strength * q
        score[p.exp() < job.contrast.floor * p.exp().max()] = -torch.inf
        written.append(int(score.argmax()))
    return written


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_a_plain_loop(family):
    model = make(family)
    wanted = [plainly(model, job) for job in JOBS]
    assert wanted != generate_batch(model, [replace(job, contrast=None) for job in JOBS], NEVER)
    assert generate_batch(model, JOBS, NEVER, rows=3) == wanted


@pytest.mark.parametrize("mode", [GenerationMode.SINGLE, GenerationMode.UNCACHED])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_models_that_cannot_be_batched_write_the_same(mode, temperature, monkeypatch):
    model = make("llama")
    wanted = generate_batch(model, JOBS, NEVER, temperature)
    monkeypatch.setattr(batched, "generation_mode", lambda *_, **__: mode)
    assert generate_batch(model, JOBS, NEVER, temperature) == wanted


def test_a_sampled_row_depends_on_itself_alone():
    model = make("llama")
    together = generate_batch(model, JOBS, NEVER, 1.0)
    assert together == [generate_batch(model, [job], NEVER, 1.0)[0] for job in JOBS]


def test_rows_without_a_second_prompt_may_stand_among_others():
    model = make("llama")
    mixed = [JOBS[0], replace(JOBS[1], contrast=None)]
    assert generate_batch(model, mixed, NEVER) == [
        generate_batch(model, [job], NEVER)[0] for job in mixed
    ]


def test_second_prompts_are_read_in_static_batches():
    model = make("llama")
    assert generation_mode(model) is GenerationMode.CONTINUOUS
    assert generation_mode(model, contrasted=True) is GenerationMode.BATCHES
