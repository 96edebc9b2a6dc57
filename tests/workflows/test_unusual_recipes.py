"""Recipes with rare choices run, and their adapters load; those that cannot run are refused."""

import math
import re

import pytest
from peft import PeftModel

from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.federation.in_process import InProcessEngine
from fedsdr.recipe.load import override_recipe, parse_recipe
from fedsdr.workflows.method import client_examples
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run import run_recipe
from support import toy_clients
from support.finished_runs import (
    base_model,
    held_out_loss,
    merge_adapter,
    read_json,
    read_weights,
    same_weights,
)

# PEFT asks for an attribute that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


@pytest.mark.parametrize(
    "changes",
    [
        {"federation.rounds": 0},
        {"federation.rounds": 1, "evaluate.every": 0, "evaluate.personal": False},
        {"federation.participation": 0.3},
        {"data.held_out": 0},
        {"local.smoothing_state": "reset", "local.smoothing_context": "joint"},
        {"local.rectify_alone": 1.0, "local.batch_size": 100},
        {"lora.targets": "all-linear", "lora.rank": 64},
        {"distill.checks": ["empty", "truncated", "repetition"], "distill.attempts": 3},
        {"model.dtype": "bfloat16"},
        {"model.max_length": 8},
        {"federation.targets": "mixed"},
        {"federation.targets": "mixed", "federation.personalisation": "feddpa"},
        {"federation.late": 0.4, "federation.late_round": 2, "local.smoothing_state": "keep"},
        {"federation.late": 0.4, "federation.late_round": 9, "federation.algorithm": "scaffold"},
        {"local.smoothing_state": "decay", "local.stage_order": "rectify_first"},
        {
            "local.smoothing_targets": "raw",
            "local.rectify_targets": "distilled",
            "local.smoothing_context": "joint",
            "federation.lora_aggregation": "fedex",
        },
        {"distill.prefer": "shorter", "distill.attempts": 3, "distill.temperature": 1.0},
    ],
)
def test_unusual_recipes_run_and_their_adapters_load(home, recipe, tmp_path, changes):
    summary = run_recipe(override_recipe(recipe, changes), tmp_path / "out", silent_reporter())
    scores = summary["methods"][summary["own"]]
    assert ("loss" in scores) == (changes.get("data.held_out") != 0)
    assert all(math.isfinite(score["mean"]) for score in scores.values())
    PeftModel.from_pretrained(base_model(home)[0], tmp_path / "out" / "global")


@pytest.mark.parametrize("aggregation", ["fedsa", "fedper"])
@pytest.mark.parametrize("rounds", [0, 1])
def test_who_never_took_part_has_the_shared_part_alone(recipe, tmp_path, aggregation, rounds):
    changes = {"federation.lora_aggregation": aggregation, "federation.targets": "raw"}
    changes |= {"federation.rounds": rounds, "federation.participation": 0.3}
    run_recipe(override_recipe(recipe, changes), tmp_path / "out", silent_reporter())
    losses = read_json(tmp_path / "out" / "personal.json")
    took_part = [path.parent.name for path in tmp_path.glob("out/clients/*/personal")]
    assert (len(took_part), len(losses)) == (rounds, 3)
    assert all(math.isfinite(each["loss"]) for each in losses.values())


@pytest.mark.parametrize("state", ["keep", "reset", "decay"])
def test_the_private_stream_may_have_a_rank_of_its_own(home, recipe, tmp_path, state):
    out = tmp_path / "out"
    run_recipe(
        override_recipe(recipe, {"lora.smoothing_rank": 5, "local.smoothing_state": state}),
        out,
        silent_reporter(),
    )
    for client in toy_clients.CLIENTS:
        private = out / "clients" / client / "private"
        config = read_json(private / "adapter_config.json")
        assert (config["r"], config["lora_alpha"]) == (5, 5 * 4.0 / 2)
        PeftModel.from_pretrained(base_model(home)[0], private)
        model, tokenizer = base_model(home)
        merge_adapter(model, read_weights(out / "global"), 4.0 / 2)
        merge_adapter(model, read_weights(private), 4.0 / 2)
        loss = held_out_loss(model, tokenizer, recipe, [client])
        assert loss == pytest.approx(read_json(out / "personal.json")[client]["loss"], abs=1e-5)
    assert read_json(out / "global" / "adapter_config.json")["r"] == 2


def test_mixed_targets_are_the_responses_and_then_their_rewrites(home, recipe, tmp_path):
    mixed = override_recipe(recipe, {"federation.targets": "mixed"})
    prepared = prepare_run(mixed)
    loaded, method = prepared.load(silent_reporter()), prepared.methods[-1].within(tmp_path)
    examples = client_examples(loaded, method, silent_reporter())
    for client, records in zip(toy_clients.CLIENTS, (5, 7, 10), strict=True):
        mine = examples[client]
        assert mine["mixed"] == [*mine["raw"], *mine["distilled"]]
        assert len(mine["raw"]) == len(mine["distilled"]) == records
    engine = InProcessEngine(loaded, method, examples, silent_reporter())
    assert engine.population() == 5 + 7 + 10


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"lab.clients": 1}, "federation.late = 0.4 leaves no client for round 1 of 1 client"),
        (
            {"lab.clients": 4, "federation.robust": "krum", "options.krum": {"malicious": 1}},
            "needs at least 4 clients in a round, and 3 take part",
        ),
    ],
)
def test_those_who_come_late_must_leave_enough_to_begin_with(changes, part):
    late = {"federation.late": 0.4, "federation.late_round": 1}
    lab = override_recipe(parse_recipe({"model": {"path": "lab"}}), changes)
    prepare_run(lab)
    prepare_run(override_recipe(lab, {"federation.late": 0.4}))  # from round 1 on: nobody is late
    with pytest.raises(UserError, match=re.escape(part)):
        prepare_run(override_recipe(lab, late))


def test_nobody_distils_where_no_round_is_run(recipe, tmp_path):
    run_recipe(
        override_recipe(recipe, {"federation.rounds": 0}), tmp_path / "out", silent_reporter()
    )
    assert not (tmp_path / "out" / "distillation.json").exists()
    assert not (tmp_path / "out" / "clients").exists()


def test_a_variant_is_the_recipe_with_its_keys_changed(recipe, tmp_path):
    variants = {"brief": {"federation": {"rounds": 1}, "local": {"rectify_alone": 1.0}}}
    both = override_recipe(recipe, {"variants": variants, "baselines": ["brief"]})
    summary = run_recipe(both, tmp_path / "both", silent_reporter())
    changed = override_recipe(recipe, {"federation.rounds": 1, "local.rectify_alone": 1.0})
    run_recipe(changed, tmp_path / "alone", silent_reporter())
    brief = tmp_path / "both" / "baselines" / "brief"
    assert same_weights(brief / "global", tmp_path / "alone" / "global")
    assert not same_weights(brief / "global", tmp_path / "both" / "global")
    assert [*summary["methods"]] == ["brief", "fedsdr"]
