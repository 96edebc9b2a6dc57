"""Runs with soft and on-policy targets: what teachers are shown, what is kept, what it costs."""

import math
from typing import Any

import pytest

from fedsdr.core.progress import silent_reporter
from fedsdr.estimate.plan import estimate_run
from fedsdr.estimate.words import describe_teaching
from fedsdr.federation.in_process import InProcessEngine
from fedsdr.recipe.load import override_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.method import client_examples
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run import run_recipe
from support import toy_clients
from support.finished_runs import read_json, same_weights, timeless_log

SOFT = {"federation.targets": "raw", "federation.loss": "soft"}
ON_POLICY = {"federation.targets": "raw", "federation.loss": "on_policy"}


def examples_of(recipe: Recipe, folder: Any) -> Any:
    prepared = prepare_run(recipe)
    loaded, method = prepared.load(silent_reporter()), prepared.methods[-1].within(folder)
    return loaded, client_examples(loaded, method, silent_reporter())


@pytest.mark.parametrize(
    "changes",
    [
        {**SOFT, "federation.pooled": True, "options.soft.weight": 0.5},
        {**SOFT, "federation.targets": "two_shared_streams", "local.smoothing_loss": "soft",
         "local.smoothing_state": "keep"},
        {"federation.targets": "mixed", "federation.loss": "on_policy", "options.on_policy.follow":
         "agreeing"},
        {**ON_POLICY, "federation.personalisation": "ditto", "local.cohort": 2},
        {**ON_POLICY, "privacy.mode": "local", "privacy.noise_seed": 3,
         "federation.compression": "int8"},
        {"federation.targets": "two_stream", "local.smoothing_loss": "on_policy",
         "local.consolidate_steps": 1},
    ],
)  # fmt: skip
def test_they_run_and_go_on_where_they_stopped(recipe, tmp_path, changes, monkeypatch):
    """Stopped after round 1, resumed, and as if it had not been."""
    short = {"federation.rounds": 2, "evaluate.every": 0, "evaluate.personal": False}
    chosen = override_recipe(recipe, {**short, **changes})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    summary = run_recipe(chosen, whole, silent_reporter())
    assert all(math.isfinite(s["mean"]) for s in summary["methods"][summary["own"]].values())
    finish = InProcessEngine.commit

    def stopped(engine: InProcessEngine, round: int, cohort: Any) -> None:
        finish(engine, round, cohort)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(InProcessEngine, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(chosen, broken, silent_reporter())
    run_recipe(chosen, broken, silent_reporter(), resume=True)
    assert same_weights(whole / "global", broken / "global")
    assert timeless_log(whole) == timeless_log(broken)


def test_a_loss_by_name_is_a_method_by_name(recipe, tmp_path):
    baselines = ["fedavg", "soft", "fedsd+on_policy"]
    chosen = override_recipe(recipe, {"baselines": baselines, "federation.rounds": 1})
    run_recipe(chosen, tmp_path / "out", silent_reporter())
    folders = {name: tmp_path / "out" / "baselines" / name / "global" for name in baselines}
    assert not same_weights(folders["fedavg"], folders["soft"])
    assert not same_weights(folders["soft"], folders["fedsd+on_policy"])


def test_a_teacher_is_shown_the_raw_response_in_the_rewriting_prompt(recipe, tmp_path):
    loaded, examples = examples_of(override_recipe(recipe, SOFT), tmp_path)
    tokenizer = loaded.base.chat.tokenizer
    for client in loaded.clients:
        for record, example in zip(client.train, examples[client.name]["raw"], strict=True):
            shown = tokenizer.decode(example.reference.prompt)
            assert shown == f"<user> {record.instruction} and {record.response} is <assistant>"
            assert tokenizer.decode(example.response) == f"{record.response} <eos>"
            assert example.reference.limit == max(4, 2 * len(example.response))


def test_a_record_whose_rewrite_is_refused_has_no_teacher(recipe, tmp_path):
    changes = {
        "federation.targets": "distilled", "federation.loss": "soft",
        "distill.checks": ["truncated"], "distill.temperature": 10.0, "distill.min_tokens": 20,
    }  # fmt: skip
    _, examples = examples_of(override_recipe(recipe, changes), tmp_path)
    accepted = []
    for client in toy_clients.CLIENTS:
        figures = read_json(tmp_path / "distillation.json")["clients"][client]
        for kind in ("raw", "distilled"):
            taught = [example.reference is not None for example in examples[client][kind]]
            assert sum(taught) == figures["rewritten"]
        accepted += taught
    assert {*accepted} == {True, False}


def test_records_that_cannot_be_shown_are_named_before_the_run_and_learnt_by_their_words(
    recipe, tmp_path
):
    """A prompt that repeats the response until some are too long for 96 tokens."""
    prompt = "{instruction} " + 22 * "{response} "
    chosen = override_recipe(recipe, {**SOFT, "distill.prompt": prompt})
    [notice] = [each for each in prepare_run(chosen).notices if each.kind == "not soft"]
    _, examples = examples_of(chosen, tmp_path)
    taught = [e.reference is not None for each in examples.values() for e in each["raw"]]
    assert 0 < sum(taught) < len(taught)
    assert notice.words.startswith(f"{len(taught) - sum(taught)} records")
    kinds = {each.kind for each in prepare_run(override_recipe(recipe, SOFT)).notices}
    assert "not soft" not in kinds


def test_what_a_sample_may_be_is_bounded_by_the_longest_example(recipe, tmp_path):
    chosen = override_recipe(recipe, {**ON_POLICY, "model.max_length": 9})
    _, examples = examples_of(chosen, tmp_path)
    for each in examples.values():
        for example in each["raw"]:
            assert 1 <= example.reference.limit <= 9 - len(example.prompt)


def test_a_plan_counts_what_teachers_read_and_students_write(recipe):
    plans = {}
    for name, changes in (
        ("raw", {"federation.targets": "raw"}),
        ("soft", SOFT),
        ("own", ON_POLICY),
    ):
        run = prepare_run(override_recipe(recipe, changes), weights=False)
        plans[name] = estimate_run(run.methods, run.clients)
    raw, soft, own = (plan.methods[-1] for plan in plans.values())
    assert (raw.shown, raw.sampled, soft.sampled) == (0, 0, 0)
    assert soft.tokens == raw.tokens == own.tokens
    assert soft.shown == own.shown > soft.tokens, "the prompt with the reference is longer"
    assert 0 < own.sampled < own.tokens
    assert raw.flops < soft.flops < own.flops
    assert describe_teaching(plans["raw"]) == ""
    words = describe_teaching(plans["own"])
    assert words.startswith(f"read by teachers: {own.shown:,} tokens (about {own.sampled:,} ")
    assert plans["soft"].memory.logits == 2.5 * plans["raw"].memory.logits
    assert plans["own"].memory.cache > plans["soft"].memory.cache == 0
