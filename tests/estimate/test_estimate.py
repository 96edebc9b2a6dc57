"""Estimates against what they foretell: real runs, real weights, PyTorch's own counters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.data.batches import Batch
from fedsdr.estimate.arithmetic import count_operations
from fedsdr.estimate.hardware import Hardware, measure_rates
from fedsdr.estimate.memory import cache_bytes, held_activations
from fedsdr.estimate.plan import estimate_run
from fedsdr.estimate.traffic import traced_stages
from fedsdr.estimate.words import format_hours, significant_digits
from fedsdr.generation.batched import generate_batch, generation_mode
from fedsdr.generation.sampling import Job
from fedsdr.model.checkpointing import checkpointed_blocks, recompute_activations
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.outline import model_outline, outline_of, weight_bytes
from fedsdr.recipe import load as recipes
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.methods import resolve_methods
from fedsdr.training.loss import summed_loss
from fedsdr.workflows.prepare import plan_folder, prepare_run
from fedsdr.workflows.run import run_recipe
from support.tiny_models import FAMILIES, make, random_ids, save_family
from support.tiny_recipe import write_recipe

SILENT = Reporter(None)
HARDWARE = Hardware("stated", 1e12, 1e11)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def plan_of(path: Path, *sets: str, hardware: Hardware | None = None):
    run = prepare_run(recipes.load_recipe(path, sets), weights=False)
    return estimate_run(run.methods, run.clients, hardware)


BYTES = {
    "fedsdr": (),
    "partial": ("federation.participation=0.5", "federation.rounds=5"),
    "late": ("federation.late=0.4", "federation.late_round=2"),
    "scaffold": ("federation.algorithm=scaffold",),
    "rolora": ("federation.lora_aggregation=rolora", "federation.targets=raw"),
    "ffa": ("federation.lora_aggregation=ffa", "federation.targets=raw"),
    "fedsa": ("federation.lora_aggregation=fedsa",),
    "flexlora": ("federation.lora_aggregation=flexlora", "lora.ranks={anna = 1}"),
    "fp16": ("federation.compression=fp16",),
    "int8": ("federation.compression=int8",),
    "topk": ("federation.compression=topk", "federation.targets=raw"),
    "pooled": ("federation.pooled=true", "federation.targets=raw"),
    "local": ("federation.algorithm=local", "federation.targets=raw"),
    "ditto": ("federation.personalisation=ditto", "federation.targets=raw"),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes_and_parameters_are_those_of_the_run(case, tmp_path):
    path = write_recipe(tmp_path)
    sets = ("distill.min_tokens=2", *BYTES[case])
    plan = plan_of(path, *sets)
    recipe = recipes.load_recipe(path, sets)
    run_recipe(recipe, tmp_path / "run", SILENT)
    rows = metrics(tmp_path / "run")[1:]
    own = plan.methods[-1].traffic
    assert own.bytes_up == sum(row["train"]["bytes_up"] for row in rows)
    assert own.bytes_down == sum(row["train"]["bytes_down"] for row in rows)
    assert own.exact
    record = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert record["model"]["parameters"] == plan.model.parameters
    assert record["model"]["dtype"] == plan.model.dtype == "float32"


def test_two_streams_send_what_one_lora_sends(tmp_path):
    path = write_recipe(tmp_path)
    one, two = (plan_of(path, f"federation.targets={t}").methods[-1] for t in ("raw", "two_stream"))
    assert one.traffic == two.traffic
    assert one.traffic.upload > 0
    assert two.steps == 2 * one.steps


@pytest.mark.parametrize("aggregation", ["flora", "fedex"])
def test_what_is_folded_is_bounded(aggregation, tmp_path):
    path = write_recipe(tmp_path)
    sets = (f"federation.lora_aggregation={aggregation}", "federation.targets=raw")
    own = plan_of(path, *sets).methods[-1].traffic
    run_recipe(recipes.load_recipe(path, sets), tmp_path / "run", SILENT)
    rows = metrics(tmp_path / "run")[1:]
    down = sum(row["train"]["bytes_down"] for row in rows)
    assert not own.exact
    assert down <= own.bytes_down <= 3 * down
    assert own.bytes_up == sum(row["train"]["bytes_up"] for row in rows)


def test_the_steps_of_every_stage_are_asked_of_the_algorithm(tmp_path):
    recipe = recipes.load_recipe(write_recipe(tmp_path), ["federation.personalisation=ditto"])
    with torch.device("meta"):
        first = TwoStreamModel(
            model_outline(recipe.model.path), recipe.lora.targets, recipe.lora.rank, 4.0
        ).blank()
    found = [
        (stage.trains, stage.targets) for stage in traced_stages(build_algorithm(recipe), first)
    ]
    assert sorted(found) == [("R", "raw"), ("R", "raw"), ("S", "distilled")]


# --- Arithmetic


def step_flops(two: TwoStreamModel, rows: int, length: int) -> int:
    """Counted by PyTorch: a step that trains R beside S."""
    two.train_only(Stream.RECTIFY)
    two.activate(Stream.RECTIFY, Stream.SMOOTH)
    ids = random_ids(rows, length)
    with FlopCounterMode(display=False) as counter:
        summed_loss(two.model, Batch(ids, torch.ones_like(ids), ids)).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_pytorch_counts(family):
    model = make(family)
    model.set_attn_implementation("eager")
    work = count_operations(model, 0)
    two = TwoStreamModel(model, "all-linear", 3, 6.0)
    adapter = sum(t.numel() for t in two.blank().values())
    work = type(work)(work.matrix, work.attention, adapter)
    rows, length = 2, 24
    tokens = rows * length
    # What needs no gradient: the inputs of the first block's first layers, and of their A.
    first = [p for p in two.paths if p.split(".")[2] == "0"]
    entry = [p for p in first if p.endswith(("q_proj", "k_proj", "v_proj", "c_attn"))]
    saved = 0
    for path in entry:
        outputs, inputs = two.blank()[path + ".lora_B.weight"].shape[0], 32
        saved += 2 * tokens * (outputs * inputs + 2 * inputs * 3 + outputs * 3)
    counted = step_flops(two, rows, length)
    assert work.training(tokens, length, frozen=1.0) == pytest.approx(counted + saved, rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_below_the_adapted_ones_cost_a_forward_pass_alone(family):
    """The two streams of the upper block; saved besides: the inputs of its first layers."""
    model = make(family)
    model.set_attn_implementation("eager")
    two = TwoStreamModel(model, "all-linear", 3, 6.0, [1])
    shapes, blocks = two.blank(), two.blocks
    adapter = sum(tensor.numel() for tensor in shapes.values())
    work = count_operations(two.detach(), adapter, blocks)
    two = TwoStreamModel(model, "all-linear", 3, 6.0, [1])
    rows, length = 2, 24
    tokens, saved = rows * length, 0
    for path in two.paths:
        if path.endswith(("q_proj", "k_proj", "v_proj", "c_attn")):
            outputs = shapes[path + ".lora_B.weight"].shape[0]
            saved += 2 * tokens * (outputs * 32 + 2 * 32 * 3 + outputs * 3)
    counted = step_flops(two, rows, length)
    assert work.training(tokens, length, frozen=1.0) == pytest.approx(counted + saved, rel=0.01)


def test_checkpointing_repeats_the_forward_pass():
    work = count_operations(make("llama"), 100)
    plain, again = work.training(10, 5, 1.0), work.training(10, 5, 1.0, again=True)
    assert again - plain == work.forward(10, 5) + 10 * 2 * 2 * 100


def test_hours_are_operations_over_speed(tmp_path):
    path = write_recipe(tmp_path)
    plan = plan_of(path, hardware=HARDWARE)
    own = plan.methods[-1]
    assert own.hours == pytest.approx((own.flops + own.evaluation_flops) / 0.4e12 / 3600)
    assert plan.hours == pytest.approx(own.hours + plan.rewrites.hours)
    assert plan_of(path).hours is None


def test_a_rewrite_that_is_checked_by_its_model_is_read_with_every_reference(tmp_path):
    path = write_recipe(tmp_path)
    plain = plan_of(path).rewrites
    checks = 'distill.checks=["empty", "self"]'
    checked = plan_of(path, checks, "distill.self_check.references=4").rewrites
    assert checked.flops == 6 * plain.flops
    assert checked.tokens == plain.tokens
    assert plan_of(path, "distill.contrast=1").rewrites.flops == 2 * plain.flops


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_hours(1234.5), "1,234 h"),
        (format_hours(999.6), "1,000 h"),
        (format_hours(12.34), "12.3 h"),
        (significant_digits(120, 2), "120"),
        (significant_digits(0.0123, 2), "0.012"),
    ],
)
def test_large_numbers_have_no_exponent(shown, expected):
    assert shown == expected


def test_hardware_is_measured():
    found = measure_rates(torch.device("cpu"), torch.float32)
    assert 1e8 < found.flops < 1e15
    assert 1e8 < found.bandwidth < 1e14


# --- Memory


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_state(family):
    model = make(family)
    tensors = {t.data_ptr(): t for t in model.state_dict().values()}
    assert weight_bytes(model, torch.float32) == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_at_least_what_autograd_keeps(family, again, tmp_path):
    model = make(family)
    model.set_attn_implementation("eager")
    kept: dict[int, torch.Tensor] = {}
    real = TwoStreamModel(model, "all-linear", 3, 6.0)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in weights:
            kept[pointer] = tensor
        return tensor

    real.train_only(Stream.RECTIFY)
    real.activate(Stream.RECTIFY, Stream.SMOOTH)
    ids = random_ids(2, 24)
    with (
        recompute_activations(model, again),
        torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
    ):
        summed_loss(model, Batch(ids, torch.ones_like(ids), ids))
    held = sum(t.untyped_storage().nbytes() for t in kept.values())
    meta = model_outline(str(save_family(family, tmp_path)))
    traced = held_activations(TwoStreamModel(meta, "all-linear", 3, 6.0), 2, 24, again)
    assert held * 0.9 <= traced <= 2 * held
    assert not any(block.training for block in checkpointed_blocks(model))


def test_the_cache_is_that_of_generation():
    model = make("llama")
    generation_mode(model)  # found out before caches are weighed
    real = []

    def weigh(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        layers = out.past_key_values.layers
        real.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))

    model.register_forward_hook(weigh, with_kwargs=True)
    generate_batch(model, [Job([7, 8, 9], 5), Job([7], 5)], stop=59)
    longest = 3 + 5
    assert cache_bytes(model.config, 2 * longest, torch.float32) == max(real)


# --- A real size, and bad input


def test_llama_2_7b_from_its_configuration_alone(tmp_path):
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, max_position_embeddings=4096,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    model = model_outline(str(tmp_path))
    assert model.num_parameters() == 6_738_415_616
    assert weight_bytes(model, torch.bfloat16) == 2 * 6_738_415_616
    layer = 4 * 4096**2 + 3 * 4096 * 11008  # weights of a block's linear layers
    scales = 4 * (5 * 4096 + 2 * 11008)
    rest = 2 * (6_738_415_616 - 32 * layer)
    assert weight_bytes(model, torch.bfloat16, "int8") == 32 * (layer + scales + 7) + rest
    with torch.device("meta"):
        adapter = TwoStreamModel(model, "all-linear", 32, 64.0).blank()
    by_hand = 32 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert sum(t.numel() for t in adapter.values()) == by_hand == 79_953_920


def test_a_model_that_is_not_here_is_an_error(tmp_path):
    recipe = recipes.load_recipe(write_recipe(tmp_path), ["model.path=meta-llama/nowhere"])
    with pytest.raises(UserError, match=r"configuration of model.path = 'meta-llama/nowhere'"):
        estimate_run(resolve_methods(recipe), [])


def test_the_lab_needs_no_trained_model(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    recipe = recipes.parse_recipe({"model": {"path": "lab"}})
    run = prepare_run(recipe, weights=False)
    with plan_folder(recipe) as folder:
        plan = estimate_run(run.methods, run.clients, path=folder)
    assert plan.model.parameters > 100_000
    assert not (tmp_path / "cache").exists()


def test_a_folder_without_a_tokenizer_is_guessed(tmp_path):
    path = write_recipe(tmp_path)
    for file in (tmp_path / "model").glob("*token*"):
        file.unlink()
    plan = plan_of(path)
    assert "a token is 4 characters" in " ".join(plan.assumptions)
    assert plan.clients[0].tokens > 0


def test_experts_are_counted_by_what_a_token_uses():
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    work = count_operations(outline_of(config, "mixtral"), 0)
    attention = 2 * 32 * 32 + 2 * 32 * 16
    assert work.matrix == attention + 60 * 32 + 2 * 3 * 32 * 48


def test_a_client_without_a_record_that_fits(tmp_path):
    with pytest.raises(UserError, match=r"client 'anna': no record fits into 2 tokens"):
        plan_of(write_recipe(tmp_path), "model.max_length=2")
