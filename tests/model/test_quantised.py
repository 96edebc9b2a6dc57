"""Bases in 8 and 4 bits: two streams on them, against the dequantised weights."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from fedsdr.core.errors import UserError
from fedsdr.core.progress import Reporter
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.model import quantised
from fedsdr.model.base import load_base
from fedsdr.model.fit import loaded_bytes
from fedsdr.model.identity import differing_parts, tensors_digest
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.outline import model_outline, weight_bytes
from fedsdr.model.peft_format import read_adapter
from fedsdr.recipe import load as recipes
from fedsdr.workflows.run import run_recipe
from support.tiny_models import logits, random_adapter, random_ids, save_family
from support.tiny_recipe import write_recipe

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
KINDS = pytest.mark.parametrize("kind", ["int8", "nf4"])
# LLM.int8() also rounds activations: to 127 levels a row.
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")
ERROR = {"int8": 0.02, "nf4": 1e-5}


def load(folder, kind):
    return load_base(str(folder), dtype="float32", device="cpu", quantisation=kind)


def widen(folder) -> None:
    """bitsandbytes cannot decode one row through layers narrower than a block of 64 weights."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4, "head_dim": 16}
    config = AutoConfig.from_pretrained(folder, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def dequantised(layer) -> torch.Tensor:
    """The weight (out, in) that a quantised layer stands for."""
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return layer.weight.data.float() * scale[:, None] / 127


@KINDS
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_layer_is_its_dequantised_weight_and_the_streams(kind, family, tmp_path):
    base = load(save_family(family, tmp_path), kind).model
    two = TwoStreamModel(base, "all-linear", 3, 6.0)
    for seed, stream in enumerate((Stream.RECTIFY, Stream.SMOOTH)):
        two.load(stream, random_adapter(two.read(stream), seed))
    two.activate(Stream.RECTIFY, Stream.SMOOTH)
    assert len(two.paths) == (14 if family == "llama" else 8)
    for path in two.paths:
        layer = base.get_submodule(path)
        weight = dequantised(layer.base)
        h = torch.randn(5, weight.shape[1], requires_grad=True)
        whole = weight.clone()
        for stream in (Stream.RECTIFY, Stream.SMOOTH):
            whole = whole + 2.0 * (layer.B[stream] @ layer.A[stream]).detach()
        wanted = functional.linear(h, whole, layer.base.bias)
        got = layer(h)
        assert got.shape == wanted.shape
        assert float((got - wanted).detach().norm() / wanted.detach().norm()) < ERROR[kind]
        up = torch.randn_like(got)
        (mine,) = torch.autograd.grad(got, h, up)
        (right,) = torch.autograd.grad(wanted, h, up)
        assert float((mine - right).norm() / right.norm()) < max(ERROR[kind], 2e-3)


@KINDS
def test_gradients_are_the_same_after_a_rewriting(kind, tmp_path):
    """On some CPUs bitsandbytes would repack 4-bit weights, and drop gradients from then on."""
    write_recipe(tmp_path)
    widen(tmp_path / "model")
    model = load(tmp_path / "model", kind).model
    two = TwoStreamModel(model, "all-linear", 2, 4.0)
    two.load(Stream.RECTIFY, random_adapter(two.read(Stream.RECTIFY), 0))
    two.activate(Stream.RECTIFY)
    ids = random_ids(2, 6) % model.config.vocab_size

    def gradients():
        parameters = two.train_only(Stream.RECTIFY)
        loss = model(input_ids=ids).logits.square().mean()
        return torch.autograd.grad(loss, list(parameters.values()))

    before = gradients()
    generate_batch(model, [Job([7, 8, 9], 3)], stop=2)
    for one, other in zip(before, gradients(), strict=True):
        assert torch.equal(one, other)
        assert one.abs().sum() > 0


@KINDS
def test_weights_take_the_bytes_that_were_foretold(kind, tmp_path):
    folder = save_family("llama", tmp_path)
    tensors = load(folder, kind).model.state_dict()
    real = sum(t.nbytes for key, t in tensors.items() if not key.endswith("bitsandbytes__nf4"))
    assert weight_bytes(model_outline(str(folder)), torch.float32, kind) == real


@KINDS
def test_a_checkpoint_that_was_saved_quantised_takes_what_it_stores(kind, tmp_path, monkeypatch):
    """And not what its configuration would take unquantised."""
    plain, saved = save_family("llama", tmp_path / "plain"), tmp_path / "saved"
    load(plain, kind).model.save_pretrained(saved)
    for file in plain.glob("*token*"):
        shutil.copy(file, saved)
    tensors = load_base(str(saved), dtype="float32", device="cpu").model.state_dict()
    real = sum(t.nbytes for key, t in tensors.items() if not key.endswith("bitsandbytes__nf4"))
    outline = model_outline(str(saved))
    counted = loaded_bytes(str(saved), outline, torch.float32, "none")
    assert real <= counted < real + 14 * 100  # and how each of 14 layers was quantised
    assert counted < 0.8 * weight_bytes(outline, torch.float32)
    monkeypatch.setattr("fedsdr.model.fit.free_memory", lambda device: counted)
    load_base(str(saved), dtype="float32", device="cpu")
    monkeypatch.setattr("fedsdr.model.fit.free_memory", lambda device: counted - 1)
    with pytest.raises(UserError, match=r"the weights of .* need"):
        load_base(str(saved), dtype="float32", device="cpu")


@KINDS
def test_the_identity_is_of_the_quantised_weights(kind, tmp_path):
    one = load(save_family("llama", tmp_path / "a"), kind).identity
    again = load(tmp_path / "a", kind).identity
    other = load(save_family("llama", tmp_path / "b", seed=1), kind).identity
    plain = load_base(str(tmp_path / "a"), device="cpu").identity
    assert differing_parts(one, again) == []
    assert differing_parts(one, other) == ["weights"]
    assert set(differing_parts(one, plain)) <= {"weights", "dtype", "quantisation"}
    assert "quantisation" in differing_parts(one, plain)


@KINDS
def test_scales_are_part_of_the_identity(kind, tmp_path):
    model = load(save_family("llama", tmp_path), kind).model
    before = tensors_digest(model.state_dict())
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    with torch.no_grad():
        scale = layer.weight.quant_state.absmax if kind == "nf4" else layer.weight.SCB
        if kind == "int8" and scale is None:
            scale = layer.state.SCB
        scale.mul_(2)
    assert tensors_digest(model.state_dict()) != before


@KINDS
def test_a_run_on_a_quantised_base(kind, tmp_path):
    path = write_recipe(tmp_path, model={"quantisation": kind})
    widen(tmp_path / "model")
    run_recipe(recipes.load_recipe(path), tmp_path / "run", Reporter(None))
    adapter = read_adapter(tmp_path / "run" / "global")
    assert any(t.abs().sum() > 0 for key, t in adapter.items() if key.endswith("B.weight"))
    model = load(tmp_path / "model", kind).model
    ids = random_ids(1, 6) % model.config.vocab_size
    before = logits(model, ids)
    two = TwoStreamModel(model, ("q_proj", "down_proj"), 2, 4.0)
    two.load(Stream.RECTIFY, adapter)
    two.activate(Stream.RECTIFY)
    assert not torch.equal(logits(model, ids), before)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(quantised.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fedsdr\[quantised\]'"):
        quantised.check_quantisation("nf4")
    quantised.check_quantisation("none")


def test_a_process_that_reads_adapters_says_nothing_of_bitsandbytes():
    program = [sys.executable, "-c", "import fedsdr.model.peft_format"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
