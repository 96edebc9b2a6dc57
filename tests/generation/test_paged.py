"""Generation by transformers' continuous batching, against our own and against its own rules."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedsdr.core.errors import UserError
from fedsdr.distillation.cache import job_key
from fedsdr.generation import paged
from fedsdr.generation.batched import generate_batch, in_batches
from fedsdr.generation.paged import generate_paged
from fedsdr.generation.sampling import Job
from fedsdr.generation.table import check_generator
from support.rewriting import RECORDS, rewrite_all
from support.sampling_tests import p_value, softmax
from support.tiny_models import FAMILIES, logits, make, random_ids

NEVER = -1
JOBS = [
    Job(random_ids(1, 1 + (7 * i) % 19, i)[0].tolist(), (5 * i) % 13, seed=i % 4) for i in range(13)
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [3, None])
def test_greedy_texts_are_those_of_static_batches(family, rows):
    """Gemma 2's sliding windows too, which our own continuous generation leaves alone."""
    model = make(family)
    stop = in_batches(model, [Job(JOBS[7].prompt, 12)], NEVER, 0.0, 1)[0][4]
    wanted = in_batches(model, JOBS, stop, 0.0, 3)
    assert len({len(row) - job.limit for row, job in zip(wanted, JOBS, strict=True)}) > 2
    assert generate_paged(model, JOBS, stop, rows=rows) == wanted
    ends = frozenset({stop, wanted[11][1]})
    wanted = in_batches(model, JOBS, ends, 0.0, 3)
    assert {row[-1] for row in wanted if row} >= ends
    assert generate_paged(model, JOBS, ends, rows=rows) == wanted


def test_nothing_is_asked_for():
    assert generate_paged(make("llama"), [Job([7], 0), Job([8, 9], 0)], NEVER) == [[], []]
    assert generate_paged(make("llama"), [], NEVER) == []


def test_samples_are_a_function_of_the_jobs_and_follow_the_softmax():
    model = make("llama")
    jobs = [Job(JOBS[3].prompt, 1, seed) for seed in range(2000)]
    rows = generate_paged(model, jobs, NEVER, 2.0, rows=100)
    few, again = (generate_paged(model, jobs[:100], NEVER, 2.0, rows=50) for _ in range(2))
    assert few == again
    other = [Job(job.prompt, job.limit, job.seed + 1) for job in jobs[:100]]
    assert generate_paged(model, other, NEVER, 2.0, rows=50) != few
    row = logits(model, torch.tensor([jobs[0].prompt]))[0, -1]
    assert p_value([row[0] for row in rows], softmax(row, 2.0)) > 0.01
    assert p_value([row[0] for row in rows], softmax(row, 1.5)) < 1e-6


def test_it_leaves_model_and_global_random_numbers_as_they_were():
    model = make("gemma")  # whose attention transformers replaces for the time being
    kind, state = model.config._attn_implementation, torch.random.get_rng_state()
    before = logits(model, random_ids(2, 9))
    generate_paged(model, JOBS, NEVER, 1.0, rows=4)
    assert model.config._attn_implementation == kind
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(logits(model, random_ids(2, 9)), before)
    assert generate_batch(model, JOBS[:2], NEVER) == in_batches(model, JOBS[:2], NEVER, 0.0, 2)


def test_a_model_that_cannot_be_paged_is_refused():
    model = make("llama")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(UserError, match=r"cannot run LlamaForCausalLM.*flex_attention.*\"fedsdr\""):
        generate_paged(model, JOBS, NEVER)


def test_an_old_transformers_is_found_out_before_any_work(monkeypatch):
    check_generator("transformers")
    monkeypatch.setattr(paged, "transformers", SimpleNamespace(__version__="5.0.1"))
    check_generator("fedsdr")
    with pytest.raises(UserError, match=r"newer transformers than 5\.0\.1"):
        check_generator("transformers")


def test_a_failure_while_generating_is_an_error_and_no_short_text(monkeypatch):
    model = make("llama")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of something")

    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of something"):
        generate_paged(model, JOBS, NEVER)


def test_a_distillation_comes_to_the_same_and_shares_no_cache(tmp_path):
    own = rewrite_all(tmp_path, RECORDS)
    assert rewrite_all(tmp_path, RECORDS, generator="transformers") == own
    assert job_key("w", JOBS[3], 0.0, "transformers") != job_key("w", JOBS[3], 0.0)


def test_too_little_memory_says_what_to_lower():
    with pytest.raises(UserError, match=r"lower distill\.batch_size"):
        generate_paged(make("llama"), [Job([7, 8], 10**9)], NEVER)
