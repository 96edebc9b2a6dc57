"""Model families: both streams learn, generate, and go through PEFT's files; how training saves
memory; what is refused before anything is loaded."""

import json
import math

import pytest
import torch
import transformers
from peft import PeftModel

from fedsdr.algorithms.contract import Loss
from fedsdr.core.adapters import fresh_adapter
from fedsdr.core.errors import UserError
from fedsdr.data.batches import Batch, collate_examples
from fedsdr.data.example import Example
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.model import fit
from fedsdr.model.base import check_model, choose_dtype, load_base
from fedsdr.model.checkpointing import check_checkpointing, recompute_activations
from fedsdr.model.folder import StoredTensor, stored_tensors
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.peft_format import read_adapter, settings_of, write_adapter
from fedsdr.training.annealing import Annealing
from fedsdr.training.local import LocalTrainer
from fedsdr.training.loss import summed_loss
from fedsdr.training.trial import check_learns
from support.tiny_models import IDS, SHAPE, logits, make, random_adapter, random_ids, save_family

CONFIGS = {
    "LlamaConfig": {},
    "Qwen2Config": {"tie_word_embeddings": True},
    "Qwen3Config": {"head_dim": 8},
    "GemmaConfig": {"head_dim": 8},
    "Gemma2Config": {"head_dim": 8, "sliding_window": 6},
    "Gemma3TextConfig": {"head_dim": 8, "sliding_window": 6},
    "MistralConfig": {"sliding_window": 6},
    "PhiConfig": {},
    "Phi3Config": {},  # fused qkv
    "OlmoConfig": {},
    "Olmo2Config": {},
    "SmolLM3Config": {},
    "GPT2Config": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
families = pytest.mark.parametrize("name", CONFIGS)
# PEFT asks transformers under an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def build(name: str):
    shape = {} if name == "GPT2Config" else SHAPE
    config = getattr(transformers, name)(**IDS, **shape, **CONFIGS[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


@families
def test_both_streams_learn_and_peft_reads_the_result(name, tmp_path):
    model = build(name)
    ids = random_ids(3, 12)
    base = logits(model, ids)
    two = TwoStreamModel(model, "all-linear", 2, 4.0)
    for seed, stream in enumerate((Stream.SMOOTH, Stream.RECTIFY)):
        two.load(stream, fresh_adapter(two.blank(), torch.Generator().manual_seed(seed)))
    two.activate(Stream.RECTIFY, Stream.SMOOTH)
    batch = Batch(ids, torch.ones_like(ids), ids)
    for stream in (Stream.SMOOTH, Stream.RECTIFY):
        parameters = two.train_only(stream)
        optimiser = torch.optim.AdamW(parameters.values(), lr=0.02)
        losses = []
        for _ in range(3):
            loss = summed_loss(model, batch)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        assert all(p.abs().sum() > 0 for key, p in parameters.items() if key.endswith("B.weight"))
    two.train_only(None)
    two.activate(Stream.RECTIFY)
    wanted = logits(model, ids)
    settings = settings_of(two, "base")
    write_adapter(tmp_path, two.read(Stream.RECTIFY), settings)
    again = read_adapter(tmp_path)
    assert all(torch.equal(again[key], t) for key, t in two.read(Stream.RECTIFY).items())
    plain = two.detach()
    assert torch.equal(logits(plain, ids), base)
    loaded = PeftModel.from_pretrained(plain, tmp_path)
    torch.testing.assert_close(logits(loaded, ids), wanted, atol=1e-4, rtol=1e-4)


@families
def test_generation_is_transformers_own(name):
    model = build(name)
    prompts = [random_ids(1, length, seed)[0].tolist() for seed, length in enumerate((1, 9, 4))]
    wanted = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10,
            eos_token_id=59, pad_token_id=0,
        )  # fmt: skip
        wanted.append(out[0, len(prompt) :].tolist())
    assert generate_batch(model, [Job(prompt, 10) for prompt in prompts], 59) == wanted


def test_checkpointing_runs_blocks_again():
    model = make("llama")
    two = TwoStreamModel(model, "all-linear", 2, 4.0)
    check_learns(two, checkpointing=True)
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    two.activate(Stream.RECTIFY)
    two.train_only(Stream.RECTIFY)
    ids = random_ids(2, 6)
    with recompute_activations(model, True):
        summed_loss(model, Batch(ids, torch.ones_like(ids), ids)).backward()
    assert len(calls) == 2
    with pytest.raises(UserError, match="has no blocks that can be checkpointed"):
        check_checkpointing(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(micro):
    two = TwoStreamModel(make("llama"), "all-linear", 2, 4.0)
    two.load(Stream.RECTIFY, random_adapter(two.read(Stream.RECTIFY), 1))
    two.activate(Stream.RECTIFY)
    parameters = two.train_only(Stream.RECTIFY)
    draw = [random_ids(1, 4 + k, k)[0].tolist() for k in range(8)]
    examples = [Example(tuple(ids[:2]), tuple(ids[2:])) for ids in draw]
    trainer = LocalTrainer(
        two, {"raw": examples}, client="a", round=1, seed=0, batch_size=8, clip=1.0,
        weight_decay=0.0, pad=0, micro_batch=micro,
    )  # fmt: skip
    batch = collate_examples(examples, 0)
    whole = summed_loss(two.model, batch)
    wanted = torch.autograd.grad(whole / batch.response_tokens, list(parameters.values()))
    mean = trainer._backward(examples, range(8), trainer._summed(Loss(), folded=False))
    assert mean.sum == pytest.approx(float(whole.detach()), rel=1e-5)
    assert mean.weight == batch.response_tokens
    for parameter, right in zip(parameters.values(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, right, atol=1e-5, rtol=1e-4)


def test_the_rate_falls_along_a_cosine():
    rate = Annealing("cosine", 1e-6, 200).rate
    assert rate(5e-5, 1) == 5e-5
    assert rate(5e-5, 101) == pytest.approx((5e-5 + 1e-6) / 2)
    for t in (2, 57, 200):  # OpenFedLLM's function, whose rounds count from 0
        openfedllm = 1e-6 + 0.5 * (5e-5 - 1e-6) * (1 + math.cos(math.pi * (t - 1) / 200))
        assert rate(5e-5, t) == pytest.approx(openfedllm)
    assert Annealing().rate(0.3, 7) == 0.3
    torch_rates = []
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10, eta_min=0.01)
    for _ in range(10):
        torch_rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    mine = [Annealing("cosine", 0.01, 10).rate(0.1, t) for t in range(1, 11)]
    assert mine == pytest.approx(torch_rates)


# --- What is refused


def test_pickled_weights_are_refused(tmp_path):
    folder = save_family("llama", tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(UserError, match=r"pytorch_model.bin, a pickle, which is never loaded"):
        check_model(str(folder))
    with pytest.raises(UserError, match="a pickle, which is never loaded"):
        load_base(str(folder), device="cpu")


def test_weights_of_another_shape_than_configured_are_refused_by_name(tmp_path):
    """transformers would print a report, or draw them at random."""
    folder = save_family("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(UserError, match=r"do not fit its config.json: '.*mlp.*' is \[") as caught:
        load_base(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_sharded_checkpoint_loads(tmp_path):
    model = make("llama")
    folder = save_family("llama", tmp_path)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    check_model(str(folder))
    ids = random_ids(1, 5)
    assert torch.equal(logits(load_base(str(folder), device="cpu").model, ids), logits(model, ids))


def test_weights_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    folder = save_family("llama", tmp_path)
    monkeypatch.setattr(fit, "free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"need 0.0 GiB as float32.*memory_check = false"):
        load_base(str(folder), device="cpu")
    load_base(str(folder), device="cpu", memory_check=False)


def test_what_pytorch_keeps_for_its_next_tensors_is_free(monkeypatch):
    for name, found in (("mem_get_info", (100, 999)), ("memory_reserved", 70)):
        monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert fit.free_memory(torch.device("cuda")) == 150


def test_stored_tensors_of_any_type_and_in_shards_are_counted(tmp_path):
    folder = save_family("llama", tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    held = stored_tensors(folder)
    assert {name: each.shape for name, each in held.items()} == {
        name: tuple(each.shape) for name, each in model.named_parameters()
    }
    assert sum(each.size for each in held.values()) == 4 * model.num_parameters()
    kinds = {"F32": 24, "BF16": 12, "U8": 6, "F8_E4M3": 6, "I32": 24, "BOOL": 6, "F4": 3}
    assert {kind: StoredTensor(kind, (2, 3)).size for kind in kinds} == kinds


def test_free_memory_is_known_for_this_machine():
    free = fit.free_memory(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50


def test_dtypes():
    cpu = torch.device("cpu")
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
