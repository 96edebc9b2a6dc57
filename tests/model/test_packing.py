"""Texts end to end give what padded ones give: losses and gradients, on every family that can."""

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from fedsdr.data.batches import collate_examples, end_to_end
from fedsdr.data.example import Example
from fedsdr.model import packing
from fedsdr.model.checkpointing import recompute_activations
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.packing import Packing, packed_attention
from fedsdr.training.loss import summed_loss
from support.tiny_models import SHAPE, VOCABULARY, make, random_adapter, random_ids

LENGTHS = (3, 11, 6, 1, 8)


def examples() -> list[Example]:
    made = []
    for seed, length in enumerate(LENGTHS):
        ids = random_ids(1, length, seed)[0].tolist()
        made.append(Example(tuple(ids[: seed % 3]), tuple(ids[seed % 3 :])))
    return made


def loss_and_gradient(two, batch, again=False):
    parameters = two.train_only(Stream.RECTIFY)
    model = two.model
    with recompute_activations(model, again), packed_attention(model, bool(batch.lengths)):
        loss = summed_loss(model, batch)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    return [loss.detach(), *gradients]


def both_streams(family, dtype):
    two = TwoStreamModel(make(family, dtype=dtype), "all-linear", 3, 6.0)
    for seed, stream in enumerate((Stream.RECTIFY, Stream.SMOOTH)):
        two.load(stream, random_adapter(two.read(stream), seed))
    two.activate(Stream.RECTIFY, Stream.SMOOTH)
    return two


def apart(a, b) -> float:
    """|a - b| / |b| over all tensors together."""
    squares = [
        ((x.double() - y.double()).square().sum(), y.double().square().sum())
        for x, y in zip(a, b, strict=True)
    ]
    return float(sum(d for d, _ in squares) / sum(n for _, n in squares)) ** 0.5


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_end_to_end_is_padded(family, dtype, tolerance, again):
    two = both_streams(family, dtype)
    assert two.packing.possible
    wanted = loss_and_gradient(two, collate_examples(examples(), 0))
    got = loss_and_gradient(two, end_to_end(examples()), again)
    assert apart(got[:1], wanted[:1]) < tolerance
    assert apart(got[1:], wanted[1:]) < tolerance
    assert two.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_in_bfloat16_end_to_end_is_about_as_close_to_the_truth_as_padded(family):
    """The truth: the same rounded weights, computed in float32."""
    two, exact = both_streams(family, torch.bfloat16), both_streams(family, torch.float32)
    exact.model.load_state_dict(two.model.state_dict())
    truth = loss_and_gradient(exact, collate_examples(examples(), 0))[1:]
    padded = apart(loss_and_gradient(two, collate_examples(examples(), 0))[1:], truth)
    got = apart(loss_and_gradient(two, end_to_end(examples()))[1:], truth)
    assert got < 2 * padded  # the plain formula rounds its scores, the fused kernel does not


def test_texts_end_to_end_do_not_see_each_other():
    first, *others = examples()[1:3]
    model = make("llama", dtype=torch.float64)
    with torch.no_grad(), packed_attention(model, True):
        whole = summed_loss(model, end_to_end([first, *others]))
        changed = summed_loss(model, end_to_end([Example((7, 7), first.response), *others]))
        apart = [summed_loss(model, end_to_end([each])) for each in (first, *others)]
    assert float(whole) == pytest.approx(float(sum(apart)), rel=1e-12)
    assert float(whole) != pytest.approx(float(changed), rel=1e-3)


def test_what_mixes_tokens_otherwise_is_padded():
    windowed = MistralForCausalLM(MistralConfig(**SHAPE, vocab_size=VOCABULARY, sliding_window=4))
    recurrent = MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    )
    eager = make("llama")
    eager.set_attn_implementation("eager")
    for model in (windowed.eval(), recurrent.eval(), eager, make("gemma")):
        assert not Packing(model).possible


def test_a_trial_finds_a_model_whose_texts_would_mix(monkeypatch):
    def blind(lengths, device):
        return {
            "position_ids": torch.arange(sum(lengths))[None],
            "cu_seq_lens_q": (0, sum(lengths)),
        }

    monkeypatch.setattr(packing, "segment_inputs", blind)
    assert not Packing(make("llama")).possible


def test_padding_is_avoided_where_it_costs_more_than_calls(monkeypatch):
    packing_of = Packing(make("llama"))
    assert not packing_of.pays([10, 10, 10])
    assert not packing_of.pays([10, 9, 10])
    monkeypatch.setattr(packing, "CALL", {"cpu": 1.0})
    assert packing_of.pays([10, 9, 10])
    assert not packing_of.pays([10, 10, 10])
