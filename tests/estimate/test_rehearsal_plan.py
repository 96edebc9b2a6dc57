"""What rehearsal, and methods that rewrite in different ways, add to the plan of a run."""

import pytest

from fedsdr.estimate.hardware import Hardware
from fedsdr.estimate.plan import Rewrites, RunPlan, estimate_run
from fedsdr.estimate.words import describe_rehearsal, plan_costs
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.prepare import prepare_run
from support.tiny_recipe import write_recipe

REHEARSING = (
    "rehearsal.share=0.5", "rehearsal.count=20", "rehearsal.prompt_tokens=5",
    "rehearsal.answer_tokens=7", "local.batch_size=4", "distill.batch_size=8",
)  # fmt: skip


def plan_of(tmp_path, *sets: str, hardware: Hardware | None = None) -> RunPlan:
    recipe = load_recipe(write_recipe(tmp_path, federation={"targets": "raw"}), sets)
    run = prepare_run(recipe, weights=False)
    return estimate_run(run.methods, run.clients, hardware)


def test_texts_are_made_once_and_as_long_as_they_may_be(tmp_path):
    plan = plan_of(tmp_path, *REHEARSING, "baselines=['fedprox']")
    assert (plan.rehearsed.prompts, plan.rehearsed.most_tokens) == (20, 20 * 12)
    assert "20 prompts with answers, at most 240 tokens" in describe_rehearsal(plan)
    assert describe_rehearsal(plan) in plan_costs(plan)["words"]


def test_nothing_is_made_where_no_method_rehearses(tmp_path):
    for sets in ((), (*REHEARSING, "federation.rounds=0"), (*REHEARSING, "rehearsal.share=0")):
        plan = plan_of(tmp_path, *sets)
        assert plan.rehearsed.prompts == plan.rehearsed.most_tokens == 0
        assert describe_rehearsal(plan) == ""


def test_a_batch_has_the_tokens_of_both_kinds(tmp_path):
    own = plan_of(tmp_path, "local.batch_size=4").methods[-1]
    mixed = plan_of(tmp_path, *REHEARSING).methods[-1]
    assert mixed.steps == own.steps
    rehearsed = own.steps * 2 * 12  # two of four texts, of twelve tokens at most
    assert mixed.tokens == pytest.approx(own.tokens / 2 + rehearsed, abs=1)


def test_its_hours_are_among_those_of_the_run(tmp_path):
    hardware = Hardware("a test", 1e9, 1e8)
    plan = plan_of(tmp_path, *REHEARSING, hardware=hardware)
    assert plan.rehearsed.hours
    assert plan.hours == pytest.approx(plan.rehearsed.hours + (plan.methods[-1].hours or 0))
    again = plan_of(tmp_path, *REHEARSING, "rehearsal.count=40", hardware=hardware)
    assert again.rehearsed.hours
    assert again.rehearsed.hours > 1.5 * plan.rehearsed.hours


def test_rewrites_are_counted_once_for_each_way_of_generating_them(tmp_path):
    recipe = write_recipe(tmp_path, federation={"targets": "two_stream"})

    def rewrites(*sets: str) -> Rewrites:
        run = prepare_run(load_recipe(recipe, sets), weights=False)
        return estimate_run(run.methods, run.clients).rewrites

    plain, new = rewrites("baselines=['fedsd']"), ("method=fedsdr2", "rehearsal.share=0")
    alone, both = rewrites(*new), rewrites(*new, "baselines=['fedsd']")
    assert alone.flops == 2 * plain.flops  # with the reference and without
    assert both.flops == pytest.approx(3 * plain.flops)
    assert (alone.requests, both.requests) == (plain.requests, 2 * plain.requests)
    assert (both.tokens, both.most_tokens) == (2 * plain.tokens, 2 * plain.most_tokens)
