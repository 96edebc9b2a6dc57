"""The two streams: their arithmetic, what is trained and what is not, on four model families."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, Adapter, layer_paths, resize_rank
from fedsdr.core.errors import UserError
from fedsdr.model.layers import linear_layers, select_layers
from fedsdr.model.lora import Stream, TwoStreamLinear, TwoStreamModel
from support.tiny_models import (
    FAMILIES,
    NAMED,
    logits,
    make,
    random_adapter,
    random_ids,
    two_streams,
)

R, S, F = Stream.RECTIFY, Stream.SMOOTH, Stream.FOLDED
IDS = random_ids(2, 9)
families = pytest.mark.parametrize("family", FAMILIES)
either = pytest.mark.parametrize("stream", Stream)

# Every linear layer of a block, by the last part of its name, as the architectures define them.
GATED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
LINEAR = {"llama": GATED, "qwen": GATED, "gemma": GATED, "gpt2": {"c_attn", "c_proj", "c_fc"}}
LAYERS = {"llama": 14, "qwen": 14, "gemma": 14, "gpt2": 8}  # two blocks; GPT-2 has two c_proj


def parameter_names(model: TwoStreamModel, stream: Stream) -> set[str]:
    return {f"{path}.{factor}.{stream}" for path in model.paths for factor in "AB"}


def same(a: Adapter, b: Adapter) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def snapshot(model: TwoStreamModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.model.named_parameters()}


def changed_base(family: str, model: TwoStreamModel, adapters: list[Adapter]) -> torch.Tensor:
    """The logits of a plain model whose weights are W0 + (6 / 3) sum of B A."""
    plain = make(family, dtype=torch.float64)
    for path in model.paths:
        layer = plain.get_submodule(path)
        for adapter in adapters:
            change = 2.0 * adapter[path + B_SUFFIX] @ adapter[path + A_SUFFIX]
            layer.weight.data += change.T if isinstance(layer, Conv1D) else change
    return logits(plain, IDS)


def step(model: TwoStreamModel, parameters: dict[str, nn.Parameter]) -> None:
    """One optimiser step on the whole model's own loss."""
    optimiser = torch.optim.SGD(parameters.values(), lr=0.1)
    model.model(input_ids=IDS, labels=IDS).loss.backward()
    optimiser.step()


# --- Arithmetic


@families
def test_with_both_streams_off_the_model_is_the_base(family):
    wanted = logits(make(family), IDS)
    model = two_streams(family)
    assert torch.equal(logits(model.model, IDS), wanted)
    model.activate(R, S)
    assert not torch.allclose(logits(model.model, IDS), wanted, atol=0.1)
    model.activate()
    assert torch.equal(logits(model.model, IDS), wanted)


@families
def test_new_streams_add_nothing(family):
    wanted = logits(make(family), IDS)
    model = TwoStreamModel(make(family), "all-linear", rank=3, alpha=6)
    model.activate(R, S)
    assert torch.equal(logits(model.model, IDS), wanted)


@pytest.mark.parametrize("active", [(), (R,), (S,), (R, S), (S, R), (R, R)])
@pytest.mark.parametrize("kind", ["linear", "biased linear", "conv1d"])
def test_a_layer_adds_each_active_stream_once(kind, active):
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    base = Conv1D(5, 4) if kind == "conv1d" else nn.Linear(4, 5, bias="biased" in kind)
    base.double()
    h, w = random(2, 3, 4), base.weight.detach()
    wanted = h @ (w if kind == "conv1d" else w.T)
    if base.bias is not None:
        nn.init.normal_(base.bias)
        wanted = wanted + base.bias.detach()
    layer = TwoStreamLinear(base, rank=2, alpha=3.0)
    for stream in Stream:
        a, b = random(2, 4), random(5, 2)
        layer.A[stream].data, layer.B[stream].data = a, b
        if stream in active:
            wanted = wanted + 3.0 / 2 * (h @ (b @ a).T)
    model = TwoStreamModel.__new__(TwoStreamModel)
    model._layers = {"x": layer}
    model.activate(*active)
    torch.testing.assert_close(layer(h).detach(), wanted, rtol=1e-12, atol=1e-12)


@families
@pytest.mark.parametrize("active", [(R,), (S,), (R, S)])
def test_the_streams_are_changes_of_the_weights(family, active):
    """The same logits as a plain model whose weights are W0 + (alpha/r) sum of B A."""
    model = two_streams(family, dtype=torch.float64)
    model.activate(*active)
    wanted = changed_base(family, model, [model.read(stream) for stream in active])
    torch.testing.assert_close(logits(model.model, IDS), wanted, rtol=0, atol=1e-9)


@families
@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("active", [(F,), (R, F), (R, S, F)])
def test_what_is_folded_adds_its_weights_at_any_rank_with_the_models_scale(family, rank, active):
    model = two_streams(family, dtype=torch.float64)  # of rank 3: the scale stays alpha / 3
    model.load(F, random_adapter(resize_rank(model.blank(), rank), seed=9))
    model.activate(*active)
    wanted = changed_base(family, model, [model.read(stream) for stream in active])
    torch.testing.assert_close(logits(model.model, IDS), wanted, rtol=0, atol=1e-9)
    model.activate(*(stream for stream in active if stream != F))
    assert float((logits(model.model, IDS) - wanted).abs().max()) > 0.1


@families
def test_both_streams_are_neither_alone(family):
    model = two_streams(family)
    outputs = []
    for active in [(), (R,), (S,), (R, S)]:
        model.activate(*active)
        outputs.append(logits(model.model, IDS))
    for i, left in enumerate(outputs):
        for right in outputs[i + 1 :]:
            assert float((left - right).abs().max()) > 0.1


# --- Which parameters are trained


@families
@pytest.mark.parametrize("targets", ["all-linear", "named"])
@pytest.mark.parametrize("trained", [R, S, None])
def test_exactly_the_chosen_stream_is_trainable_and_moves(family, targets, trained):
    model = two_streams(family, NAMED[family] if targets == "named" else targets)
    model.activate(R, S)
    parameters = model.train_only(trained)
    wanted = parameter_names(model, trained) if trained else set()
    named = dict(model.model.named_parameters())
    assert {name for name, p in named.items() if p.requires_grad} == wanted
    assert {id(p) for p in parameters.values()} == {id(named[name]) for name in wanted}
    assert len(parameters) == len(wanted) == (2 * len(model.paths) if trained else 0)
    if trained is None:
        return
    before = snapshot(model)
    step(model, parameters)
    after = snapshot(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == wanted
    assert {name for name, p in named.items() if p.grad is not None} == wanted


@either
def test_a_stream_can_be_trained_after_the_other(stream):
    model = two_streams("llama")
    other = S if stream is R else R
    model.activate(*Stream)
    step(model, model.train_only(other))
    frozen = model.read(other)
    model.model.zero_grad()
    step(model, model.train_only(stream))
    named = dict(model.model.named_parameters())
    assert all(named[name].grad is None for name in parameter_names(model, other))
    assert all(torch.equal(frozen[key], tensor) for key, tensor in model.read(other).items())


@either
def test_a_stream_that_is_off_is_not_trained(stream):
    model = two_streams("llama")
    parameters = model.train_only(stream)
    model.activate(S if stream is R else R)
    with pytest.raises(RuntimeError, match="does not require grad"):
        step(model, parameters)


def test_the_parameters_come_in_the_order_of_their_keys():
    model = two_streams("llama")
    parameters, tensors = model.train_only(R), model.read(R)
    assert list(parameters) == list(tensors) == sorted(tensors)
    assert all(torch.equal(parameters[key], tensor) for key, tensor in tensors.items())


# --- Loading and reading


@either
def test_a_stream_comes_back_as_it_was_loaded(stream):
    model = two_streams("llama")
    other = S if stream is R else R
    untouched = model.read(other)
    wanted = random_adapter(model.read(stream), seed=9)
    loaded = {key: tensor.clone() for key, tensor in wanted.items()}
    model.load(stream, loaded)
    for shared in (loaded, model.read(stream)):  # both are copies, not views of the model
        for tensor in shared.values():
            tensor.zero_()
    assert all(torch.equal(wanted[key], t) for key, t in model.read(stream).items())
    assert all(torch.equal(untouched[key], t) for key, t in model.read(other).items())


@either
def test_a_stream_takes_an_adapter_of_any_rank_and_gives_it_back(stream):
    model = two_streams("llama", dtype=torch.float64)
    others = {each: model.read(each) for each in Stream if each != stream}
    first = model.read(stream)
    model.activate(stream)
    wanted = logits(model.model, IDS)
    for rank in (5, 1, 3):
        adapter = random_adapter(resize_rank(first, rank), seed=rank)
        model.load(stream, adapter)
        assert same(model.read(stream), adapter)
        got = logits(model.model, IDS)
        torch.testing.assert_close(got, changed_base("llama", model, [adapter]), rtol=0, atol=1e-9)
        assert all(same(model.read(each), others[each]) for each in others)
    model.load(stream, first)
    assert torch.equal(logits(model.model, IDS), wanted)


def test_layers_of_a_stream_may_have_ranks_of_their_own():
    model = two_streams("llama", dtype=torch.float64)
    like = model.blank()
    adapter: Adapter = {}
    for rank, path in enumerate(layer_paths(like), start=1):
        part = {key: like[key] for key in like if key.startswith(path + ".")}
        adapter |= random_adapter(resize_rank(part, rank), seed=rank)
    model.load(F, adapter)
    model.activate(F)
    assert same(model.read(F), adapter)
    wanted = changed_base("llama", model, [adapter])
    torch.testing.assert_close(logits(model.model, IDS), wanted, rtol=0, atol=1e-9)


def test_a_blank_adapter_has_the_federations_rank_whatever_the_streams_hold():
    model = two_streams("llama")
    like = model.read(R)
    model.load(R, random_adapter(resize_rank(like, 5), seed=1))
    blank = model.blank()
    assert blank.keys() == like.keys()
    for key, tensor in blank.items():
        assert (tensor.shape, tensor.dtype) == (like[key].shape, like[key].dtype)
        assert not tensor.any()


@either
def test_a_stream_of_another_rank_is_trained_as_a_whole(stream):
    model = two_streams("llama")
    parameters = model.train_only(stream)
    model.load(stream, random_adapter(resize_rank(model.read(stream), 5), seed=1))
    model.activate(stream)
    # New tensors, which are trained as the old ones were.
    named = dict(model.model.named_parameters())
    wanted = parameter_names(model, stream)
    assert {name for name, p in named.items() if p.requires_grad} == wanted
    assert not any(parameters[key].shape == p.shape for key, p in model.train_only(stream).items())
    before = model.read(stream)
    step(model, model.train_only(stream))
    after = model.read(stream)
    assert not any(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(("factors", "suffix"), [("A", A_SUFFIX), ("B", B_SUFFIX)])
def test_one_factor_can_be_trained_alone(factors, suffix):
    model = two_streams("llama")
    model.activate(R)
    parameters = model.train_only(R, factors)
    assert set(parameters) == {path + suffix for path in model.paths}
    before = model.read(R)
    step(model, parameters)
    after = model.read(R)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == set(parameters)


def test_an_adapter_of_another_model_is_refused_and_nothing_loaded():
    model = two_streams("llama")
    before = model.read(R)
    missing = dict(list(before.items())[1:])
    wide = {key: torch.zeros(7, 7) for key in before}
    for bad in (missing, {**before, "stray": torch.ones(1)}, wide, {}):
        with pytest.raises(ValueError, match=r"missing keys|has shape"):
            model.load(R, bad)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.read(R).items())


# --- The base


@families
def test_detaching_gives_the_base_back(family):
    base = make(family)
    names = [name for name, _ in base.named_parameters()]
    modules = {path: module for path, module in base.named_modules() if path}
    weights = {name: p.detach().clone() for name, p in base.named_parameters()}
    model = TwoStreamModel(base, "all-linear", rank=3, alpha=6)
    for stream in Stream:
        model.load(stream, random_adapter(model.read(stream), seed=1))
        model.activate(stream)
        step(model, model.train_only(stream))
    plain = model.detach()
    assert [name for name, _ in plain.named_parameters()] == names
    assert {path: module for path, module in plain.named_modules() if path} == modules
    assert all(torch.equal(p, weights[name]) for name, p in plain.named_parameters())
    assert model.paths == []


# --- Which layers are adapted


@families
def test_all_linear_is_every_linear_layer_but_the_head(family):
    model = make(family)
    assert isinstance(model.lm_head, nn.Linear)
    paths = select_layers(model, "all-linear")
    assert {path.rpartition(".")[2] for path in paths} == LINEAR[family]
    assert len(paths) == LAYERS[family] == len(set(paths))
    assert paths == list(linear_layers(model))


@families
def test_names_select_exactly_the_layers_called_so(family):
    model = two_streams(family, NAMED[family])
    assert {path.rpartition(".")[2] for path in model.paths} == set(NAMED[family])
    assert len(model.paths) == 4
    wrapped = {p for p, m in model.model.named_modules() if isinstance(m, TwoStreamLinear)}
    assert wrapped == set(model.paths)
    assert model.transposed == (family == "gpt2")


def test_one_name_may_stand_alone():
    model = make("llama")
    assert select_layers(model, "q_proj") == select_layers(model, ["q_proj"])


@pytest.mark.parametrize("targets", ["lm_head", "proj", "all_linear", ("q_proj", "c_attn"), ""])
def test_unknown_targets_are_refused_with_the_choices(targets):
    with pytest.raises(UserError) as caught:
        TwoStreamModel(make("llama"), targets, rank=2, alpha=2)
    message = str(caught.value)
    wrong = "c_attn" if isinstance(targets, tuple) else targets
    assert f"lora.targets names {wrong!r}" in message
    for choice in (*GATED, "all-linear"):
        assert repr(choice) in message
    assert "'lm_head'" not in message.partition("choose from")[2]


def test_no_targets_are_refused():
    with pytest.raises(UserError, match=r"lora\.targets is empty: choose from .*'q_proj'"):
        TwoStreamModel(make("llama"), (), rank=2, alpha=2)


# --- Number types


@families
@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_adapters_are_at_least_float32(family, base, adapter):
    model = two_streams(family, dtype=base)
    model.activate(R, S)
    assert {tensor.dtype for tensor in model.read(R).values()} == {adapter}
    assert logits(model.model, IDS).dtype == base
    parameters = model.train_only(S)
    step(model, parameters)
    assert {p.grad.dtype for p in parameters.values() if p.grad is not None} == {adapter}


@pytest.mark.parametrize("clients", [0, 3])
@pytest.mark.parametrize("active", [(R,), (R, S)])
def test_thin_products_in_bfloat16_are_the_wide_ones_but_for_its_rounding(active, clients):
    """Output and gradients of A, B and the input, against float32 on the same weights and input.

    bfloat16 rounds by at most 2^-9 of a number. A value is rounded a handful of times on its way,
    the errors of a sum's terms are independent: 2^-7 of a tensor's norm bounds them.
    """
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    weight, h, g = (random(*n).bfloat16() for n in ((96, 64), (6, 20, 64), (6, 20, 96)))
    many = (clients,) if clients else ()
    factors = {s: (random(*many, 16, 64), random(*many, 96, 16)) for s in Stream}
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        base = nn.Linear(64, 96, bias=False).requires_grad_(False)
        base.weight.copy_(weight)
        layer = TwoStreamLinear(base.to(dtype), rank=16, alpha=8.0)
        for stream, (a, b) in factors.items():
            layer.A[stream] = nn.Parameter(a.clone(), stream == R)
            layer.B[stream] = nn.Parameter(b.clone(), stream == R)
        layer.active = active
        inputs = h.to(dtype).requires_grad_()
        out = layer(inputs)
        learnt = (inputs, layer.A[R], layer.B[R])
        found.append([out.detach(), *torch.autograd.grad(out, learnt, g.to(dtype))])
    assert [t.dtype for t in found[0]] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for narrow, wide in zip(*found, strict=True):
        assert 0 < float((narrow - wide).norm()) < 2**-7 * float(wide.norm())
