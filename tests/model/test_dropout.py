"""Dropout of LoRA branches: PEFT's formula, and masks that depend on nothing but their keys."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fedsdr.algorithms.contract import Loss, Schedule, Stage
from fedsdr.core.adapters import Adapter, Private, unwrap_private
from fedsdr.core.errors import UserError
from fedsdr.core.seeds import derive_seed
from fedsdr.data.batches import collate_examples, end_to_end
from fedsdr.data.example import Example
from fedsdr.model import dropout, packing
from fedsdr.model.dropout import GOLDEN, KEY_BITS, Dropout, lora_dropout, mix_bits
from fedsdr.model.lora import Stream, TwoStreamLinear, TwoStreamModel
from fedsdr.model.peft_format import AdapterSettings, read_settings, write_adapter
from fedsdr.training.cohort import train_cohort
from fedsdr.training.loss import summed_loss
from support.cohort_trainers import CLIENTS, furthest, trainers
from support.tiny_models import make, random_ids, two_streams
from support.training_stages import TARGETS, adapter, examples, new_model, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

R, S = Stream.RECTIFY, Stream.SMOOTH
SHORT = Schedule(3, 1e-2)
RECTIFY = Stage("rectify", "R", SHORT, adapter(1), private=Private(adapter(2)), alone=0.5)
SMOOTH = Stage("smooth", "S", SHORT, adapter(1), private=Private(adapter(2)), targets="distilled")
CONSOLIDATE = Stage(
    "x", "R", SHORT, adapter(1), private=Private(adapter(2)), loss=Loss("consolidation")
)
STAGES = {"R beside S": RECTIFY, "S beside R": SMOOTH, "R from R and S": CONSOLIDATE}


def kept(drop: Dropout, width: int, layer: int = 7) -> torch.Tensor:
    return drop(torch.ones(drop.tokens.numel(), width), layer) != 0


def batch_of(*lengths: int) -> list[Example]:
    return [Example(tuple(range(5, 5 + n)), (4,)) for n in lengths]


# --- Masks


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_share_is_dropped_and_the_rest_grows(share):
    drop = lora_dropout(
        share, collate_examples(batch_of(63, 63, 63, 63), 0), [11, 12, 13, 2**62 + 5]
    )
    out = drop(torch.ones(4 * 64, 512, dtype=torch.float64), 3)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - share)])
    found = (out == 0).double()
    deviation = (share * (1 - share)) ** 0.5
    for part, count in ((found, found.numel()), (found.mean(0), 256), (found.mean(1), 512)):
        assert abs(float(part.mean()) - share) < 5 * deviation / found.numel() ** 0.5
        if part.dim() == 1:  # of each channel, and of each token
            assert float((part - share).abs().max()) < 6 * deviation / count**0.5


def test_masks_are_unlike_each_other():
    """Neighbouring examples, tokens, layers and channels have nothing to do with each other."""
    drop = lora_dropout(0.5, collate_examples(batch_of(31, 31), 0), [20, 21])
    signs = kept(drop, 256).double() * 2 - 1
    other = kept(drop, 256, layer=8).double() * 2 - 1
    for products in (signs[:32] * signs[32:], signs[1:] * signs[:-1], signs * other):
        assert abs(float(products.mean())) < 5 / products.numel() ** 0.5
    assert abs(float((signs[:, 1:] * signs[:, :-1]).mean())) < 5 / signs.numel() ** 0.5


def test_the_hash_is_that_of_splitmix64():
    """Its first numbers from the seed 1234567, as published with the algorithm."""
    states = torch.arange(1, 6) * GOLDEN + 1234567
    published = (
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    )  # fmt: skip
    assert [each % 2**64 for each in mix_bits(states).tolist()] == [*published]


def test_each_bit_of_a_key_changes_half_of_the_hash():
    keys = torch.randint(0, 2**KEY_BITS - 1, (5000,), generator=torch.Generator().manual_seed(1))
    for bit in range(KEY_BITS):
        changed = mix_bits(keys) ^ mix_bits(keys ^ (1 << bit))
        shares = torch.stack([(changed >> place & 1).double().mean() for place in range(64)])
        assert float((shares - 0.5).abs().max()) < 6 * 0.5 / 5000**0.5


def test_no_two_tokens_of_half_a_million_have_one_mask():
    """Keys of 32 bits collide for a few dozens of so many."""
    keys = [derive_seed(0, "dropout", place) for place in range(1000)]
    tokens = lora_dropout(0.5, collate_examples(batch_of(*[500] * 1000), 0), keys).tokens
    assert len(tokens.unique()) == len(tokens) == 501_000


def test_all_bits_of_an_examples_key_count():
    batch = collate_examples(batch_of(31, 31), 0)
    for bit in (0, 31, 32, 47, KEY_BITS - 1):
        signs = kept(lora_dropout(0.5, batch, [5, 5 ^ (1 << bit)]), 256).double() * 2 - 1
        assert abs(float((signs[:32] * signs[32:]).mean())) < 5 / signs[:32].numel() ** 0.5


def test_masks_of_seeds_clients_rounds_and_steps_are_independent():
    """Pairwise, over all of them: their products average to nothing."""
    fits = [
        trainer(new_model(), dropout=0.5, seed=seed, client=client, round=round)
        for seed in (0, 1) for client in ("a", "b") for round in (1, 2)
    ]  # fmt: skip
    keys = [fit.keys(RECTIFY, step, 1)[0] for fit in fits for step in (0, 1)]
    batch = collate_examples(batch_of(*[63] * len(keys)), 0)
    signs = kept(lora_dropout(0.5, batch, keys), 128).double().view(len(keys), -1) * 2 - 1
    found = signs @ signs.T / signs.shape[1] - torch.eye(len(keys))
    assert float(found.abs().max()) < 5 / signs.shape[1] ** 0.5


def test_a_token_has_its_mask_however_the_batch_is_laid_out():
    texts, keys = batch_of(3, 6, 1), [5, 9, 2]
    padded = kept(lora_dropout(0.5, collate_examples(texts, 0), keys), 16).view(3, 7, 16)
    rows = [padded[i, : len(text)] for i, text in enumerate(texts)]
    assert torch.equal(kept(lora_dropout(0.5, end_to_end(texts), keys), 16), torch.cat(rows))
    alone = [
        kept(lora_dropout(0.5, collate_examples([t], 0), [k]), 16)
        for t, k in zip(texts, keys, strict=True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(alone, rows, strict=True))


def test_masks_are_the_same_in_parts(monkeypatch):
    drop = lora_dropout(0.5, collate_examples(batch_of(30, 3), 0), [20, 21])
    whole = kept(drop, 16)
    for part in (1, 50, 16 * 7):
        monkeypatch.setattr(dropout, "PART", part)
        assert torch.equal(kept(drop, 16), whole)


# --- In a layer


class Masked(torch.nn.Module):
    """In the place of PEFT's dropout: the same formula with the mask of ours."""

    def __init__(self, drop: Dropout, layer: int, width: int) -> None:
        super().__init__()
        self.mask, self.share = kept(drop, width, layer), drop.share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask.view(x.shape) / (1 - self.share)


def test_with_a_given_mask_it_is_pefts():
    """Losses and gradients of both factors."""
    ours, share = two_streams("llama", TARGETS, dtype=torch.float64), 0.3
    batch = collate_examples(examples(4, seed=3), 0)
    drop = lora_dropout(share, batch, [1, 2, 3, 4])
    config = LoraConfig(r=3, lora_alpha=6, target_modules=list(TARGETS), lora_dropout=share)
    theirs = get_peft_model(make("llama", dtype=torch.float64), config)
    held = ours.read(R)
    for path, layer in ours._layers.items():
        module: Any = theirs.base_model.model.get_submodule(path)
        assert type(module.lora_dropout["default"]) is torch.nn.Dropout
        assert module.lora_dropout["default"].p == share
        masked = Masked(drop, layer.key, layer.A[R].shape[1])
        module.lora_dropout["default"] = masked
        for factor, name in ((module.lora_A, "A"), (module.lora_B, "B")):
            factor["default"].weight.data = held[f"{path}.lora_{name}.weight"].clone()
    wanted = summed_loss(theirs.base_model.model, batch)
    wanted.backward()
    parameters = ours.train_only(R)
    ours.activate(R)
    with ours.dropping(drop):
        found = summed_loss(ours.model, batch)
        found.backward()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    for key, parameter in parameters.items():
        path, _, name = key.removesuffix(".weight").rpartition(".lora_")
        module = theirs.base_model.model.get_submodule(path)
        gradient = getattr(module, f"lora_{name}")["default"].weight.grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert float(summed_loss(ours.model, batch)) != pytest.approx(float(found.detach()), 1e-6)


def layer_of(rank: int = 2) -> TwoStreamLinear:
    layer = TwoStreamLinear(torch.nn.Linear(6, 4).double(), rank, 4.0)
    layer.requires_grad_(False)
    for stream in Stream:
        for factor in (layer.A[stream], layer.B[stream]):
            factor.data = torch.randn_like(factor.double())
    layer.active = (R, S, Stream.FOLDED)
    return layer


@pytest.mark.parametrize("trained", [R, S])
def test_frozen_streams_and_the_base_read_everything(trained):
    layer, h = layer_of(), torch.randn(5, 6, dtype=torch.float64)
    whole = layer(h)
    layer.dropout = drop = Dropout(0.5, torch.arange(5))
    assert torch.equal(layer(h), whole), "nothing is trained"
    layer.B[trained].requires_grad_(True)
    missing = h - drop(h, layer.key)
    less = missing @ layer.A[trained].T @ layer.B[trained].T * layer.scaling
    torch.testing.assert_close(layer(h), whole - less, rtol=0, atol=1e-12)
    assert bool((less.abs() > 0.1).any())


def test_a_layer_that_reads_some_of_the_tokens_cannot_be_dropped_from():
    layer = layer_of()
    layer.dropout = Dropout(0.1, torch.arange(5))
    layer.B[R].requires_grad_(True)
    with pytest.raises(UserError, match=r"lora.dropout = 0.1 needs layers that read every token"):
        layer(torch.randn(3, 6, dtype=torch.float64))


class Experts(torch.nn.Module):
    """Every token but the first goes through the layer."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.down_proj = inner

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.cat([h[:, :1, :32] * 0, self.down_proj(h[:, 1:])], dim=1)


def test_such_a_model_is_refused_before_any_work():
    plain = make("llama")
    two_streams("llama", TARGETS).check_dropout(0.1)
    block = plain.model.layers[0].mlp
    block.down_proj = Experts(block.down_proj)
    model = TwoStreamModel(plain, TARGETS, 2, 4.0)
    with pytest.raises(UserError, match=r"set lora.dropout = 0, or leave such layers out"):
        model.check_dropout(0.1)
    ids = random_ids(1, 5)
    model.model(input_ids=ids)  # and is left as it was


# --- In training


def trained(stage: Stage, share: float = 0.4, **changes: Any) -> Adapter:
    return unwrap_private(trainer(new_model(), dropout=share, **changes)(stage).after)


def close(a: Adapter, b: Adapter) -> bool:
    assert a.keys() == b.keys()
    return all(torch.allclose(a[key], b[key], rtol=0, atol=1e-9) for key in a)


@pytest.mark.parametrize("name", STAGES)
def test_the_result_is_the_same_in_parts_end_to_end_and_computed_again(name, monkeypatch):
    stage = STAGES[name]
    plain = trained(stage)
    assert not close(plain, trained(stage, share=0.0))
    assert not close(plain, trained(stage, share=0.3))
    assert close(plain, trained(stage, micro_batch=2))
    assert close(plain, trained(stage, checkpointing=True))
    monkeypatch.setattr(packing, "CALL", {"cpu": -1.0})
    assert close(plain, trained(stage))
    assert close(plain, trained(stage, micro_batch=2, checkpointing=True))


def test_a_mask_is_of_seed_client_round_stage_and_step_and_of_nothing_else():
    torch.manual_seed(1)
    first = trained(RECTIFY)
    torch.manual_seed(2)
    again = trained(RECTIFY)
    assert all(torch.equal(first[key], again[key]) for key in first)
    one = trainer(new_model(), dropout=0.4)
    others = [
        trainer(new_model(), dropout=0.4, **each)
        for each in ({"seed": 9}, {"client": "b"}, {"round": 3})
    ]
    keys = [fit.keys(RECTIFY, 0, 2) for fit in (one, *others)]
    keys += [one.keys(SMOOTH, 0, 2), one.keys(RECTIFY, 1, 2)]
    assert len({key for each in keys for key in each}) == 2 * len(keys)


def test_after_training_nothing_is_dropped():
    model, ids = new_model(), random_ids(2, 7)
    trainer(model, dropout=0.4)(RECTIFY)
    assert all(layer.dropout is None for layer in model._layers.values())
    model.activate(R, S)
    with torch.no_grad():
        assert torch.equal(model.model(input_ids=ids).logits, model.model(input_ids=ids).logits)


@pytest.mark.parametrize("options", [{}, {"micro_batch": 2, "checkpointing": True}])
@pytest.mark.parametrize("name", STAGES)
def test_several_clients_at_once_drop_what_each_does_alone(name, options):
    model, stages = new_model(), [STAGES[name]] * len(CLIENTS)
    alone = [fit(s) for fit, s in zip(trainers(model, dropout=0.4, **options), stages, strict=True)]
    together = train_cohort(trainers(model, dropout=0.4, **options), stages)
    plain = train_cohort(trainers(model, **options), stages)
    for one, other, without in zip(alone, together, plain, strict=True):
        assert furthest(vars(one), vars(other)) < 1e-10
        assert furthest(vars(one), vars(without)) > 1e-4


def test_an_exported_adapter_tells_its_dropout(tmp_path):
    model = new_model()
    settings = AdapterSettings(model.rank, model.alpha, sorted(TARGETS), "base", dropout=0.05)
    write_adapter(tmp_path, model.read(R), settings)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_dropout"] == 0.05
    assert read_settings(tmp_path).dropout == 0.05
