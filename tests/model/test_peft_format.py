"""PEFT as the judge: it loads what we write, we load what it writes, and the logits agree."""

import stat
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedsdr.core import files
from fedsdr.core.adapters import Adapter, layer_paths, resize_rank
from fedsdr.core.errors import UserError
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.peft_format import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    AdapterSettings,
    read_adapter,
    settings_of,
    target_modules,
    write_adapter,
)
from support.tiny_models import (
    FAMILIES,
    NAMED,
    logits,
    make,
    random_adapter,
    random_ids,
    save_family,
    two_streams,
)

# PEFT 0.21 reads an attribute that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

R, S, F = Stream.RECTIFY, Stream.SMOOTH, Stream.FOLDED
IDS = random_ids(2, 9)
TARGETS = [
    pytest.param(family, kind, id=f"{family}-{kind}")
    for family in FAMILIES
    for kind in ("all-linear", "named")
]


def choose(family, kind):
    return NAMED[family] if kind == "named" else kind


def settings(model: TwoStreamModel) -> AdapterSettings:
    return settings_of(model, "base")


def adapted(peft_model) -> set[str]:
    """Paths of the layers that PEFT adapted."""
    return {
        name.removeprefix(PREFIX)
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    }


@pytest.mark.parametrize(("family", "kind"), TARGETS)
def test_peft_loads_the_global_stream_with_the_same_logits(tmp_path, family, kind):
    model = two_streams(family, choose(family, kind))
    write_adapter(tmp_path / "global", model.read(R), settings(model))
    loaded = PeftModel.from_pretrained(make(family), tmp_path / "global").eval()
    model.activate(R)
    torch.testing.assert_close(logits(loaded, IDS), logits(model.model, IDS), rtol=0, atol=1e-5)
    assert adapted(loaded) == set(model.paths)


@pytest.mark.parametrize(("family", "kind"), TARGETS)
def test_both_streams_are_two_peft_adapters_active_at_once(tmp_path, family, kind):
    """In float64: one product for both streams adds up in another order than two do."""
    model = two_streams(family, choose(family, kind), dtype=torch.float64)
    for stream in Stream:
        write_adapter(tmp_path / stream, model.read(stream), settings(model))
    loaded = PeftModel.from_pretrained(
        make(family, dtype=torch.float64), tmp_path / "R", adapter_name="R"
    ).eval()
    loaded.load_adapter(tmp_path / "S", adapter_name="S")
    for active in ([R], [S], [R, S]):
        loaded.base_model.set_adapter([str(stream) for stream in active])
        model.activate(*active)
        torch.testing.assert_close(
            logits(loaded, IDS), logits(model.model, IDS), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_it_works_on_a_model_folder(tmp_path, family):
    model = two_streams(family)
    write_adapter(tmp_path / "adapter", model.read(R), settings(model))
    base = AutoModelForCausalLM.from_pretrained(save_family(family, tmp_path / "base"))
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    model.activate(R)
    torch.testing.assert_close(logits(loaded, IDS), logits(model.model, IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_that_peft_trained_loads_into_a_stream(tmp_path, family):
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules="all-linear",
        fan_in_fan_out=family == "gpt2",
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(make(family), config).eval()
    parameters = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    for name, value in random_adapter(parameters, seed=5).items():
        parameters[name].data = value
    theirs.save_pretrained(tmp_path)
    ours = TwoStreamModel(make(family), "all-linear", rank=3, alpha=6)
    assert adapted(theirs) == set(ours.paths)
    for stream in Stream:
        ours.load(stream, read_adapter(tmp_path))
        ours.activate(stream)
        # Both streams are one product here and two there, which round differently.
        torch.testing.assert_close(logits(ours.model, IDS), logits(theirs, IDS), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("family", "kind"), TARGETS)
def test_layers_of_other_ranks_have_one_scale_in_peft_too(tmp_path, family, kind):
    """As exact aggregation leaves them: alpha / rank is the federation's for every layer."""
    model = two_streams(family, choose(family, kind))
    like = model.blank()
    adapter: Adapter = {}
    # Ranks 1 to 5, one of them more frequent, in no order of the layers.
    for i, path in enumerate(layer_paths(like)):
        part = {key: like[key] for key in like if key.startswith(path + ".lora")}
        adapter |= random_adapter(resize_rank(part, (5, 2, 2, 1, 4)[i % 5]), seed=i)
    write_adapter(tmp_path, adapter, settings(model))
    loaded = PeftModel.from_pretrained(make(family), tmp_path).eval()
    model.load(F, adapter)
    model.activate(F)
    torch.testing.assert_close(logits(loaded, IDS), logits(model.model, IDS), rtol=0, atol=1e-5)
    assert adapted(loaded) == set(model.paths)
    got = read_adapter(tmp_path)
    assert got.keys() == adapter.keys()
    assert all(torch.equal(got[key], tensor) for key, tensor in adapter.items())


def test_all_layers_of_one_other_rank_need_no_patterns(tmp_path):
    model = two_streams("llama")
    write_adapter(tmp_path, random_adapter(resize_rank(model.blank(), 5), seed=1), settings(model))
    config = LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha) == (5, 10.0)  # 6 / 3 = 10 / 5
    assert (config.rank_pattern, config.alpha_pattern) == ({}, {})


def test_what_is_written_is_read_back(tmp_path):
    model = two_streams("llama")
    write_adapter(tmp_path / "a", model.read(S), settings(model), private=True)
    got = read_adapter(tmp_path / "a")
    assert got.keys() == model.read(S).keys()
    assert all(torch.equal(got[key], tensor) for key, tensor in model.read(S).items())
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / WEIGHTS).stat().st_mode & 0o777 == 0o600


def test_names_of_modules_are_in_order(tmp_path):
    """Which PEFT's sets are not: another process would write other bytes."""
    model = two_streams("llama", "all-linear")
    write_adapter(tmp_path / "a", model.read(S), settings(model))
    modules = files.read_json(tmp_path / "a" / "adapter_config.json")["target_modules"]
    assert len(modules) == 7
    assert modules == sorted(modules)


def test_the_config_names_what_the_tensors_do_not(tmp_path):
    model = two_streams("gpt2", "c_fc")
    write_adapter(tmp_path, model.read(R), settings(model))
    config = LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (3, 6.0, {"c_fc"})
    assert (config.fan_in_fan_out, config.task_type, config.bias) == (True, "CAUSAL_LM", "none")
    assert config.base_model_name_or_path == "base"


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",  # no prefix
        PREFIX + "model.layers.0.self_attn.q_proj.lora_magnitude_vector",  # DoRA
        PREFIX + "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        PREFIX + "lm_head.weight",  # modules_to_save
    ],
)
def test_keys_that_are_no_lora_factors_are_refused(tmp_path, key):
    model = two_streams("llama")
    write_adapter(tmp_path, model.read(R), settings(model))
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({**tensors, key: torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"has the key '" + key.replace(".", r"\.")):
        read_adapter(tmp_path)


@pytest.mark.parametrize("private", [False, True])
def test_a_private_adapters_files_are_its_owners_alone(tmp_path, private):
    model = two_streams("llama")
    write_adapter(tmp_path / "a", model.read(S), settings(model), private=private)
    files = list((tmp_path / "a").iterdir())
    assert {file.name for file in files} == {CONFIG, WEIGHTS}
    if private:
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    else:
        assert (tmp_path / "a" / CONFIG).stat().st_mode & 0o044


def test_a_write_that_fails_leaves_the_old_config(tmp_path, monkeypatch):
    model = two_streams("llama")
    write_adapter(tmp_path, model.read(S), settings(model))
    before = (tmp_path / CONFIG).read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(tmp_path, model.read(S), replace(settings(model), alpha=99.0))
    assert (tmp_path / CONFIG).read_bytes() == before


def test_a_folder_without_weights_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=WEIGHTS):
        read_adapter(tmp_path)


LINEAR = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.mlp.c_fc", "h.1.mlp.c_fc"]


@pytest.mark.parametrize(
    ("chosen", "modules"),
    [
        (LINEAR, ["c_fc", "c_proj"]),
        (LINEAR[2:], ["c_fc"]),
        (LINEAR[:2], ["c_proj"]),
        (["h.0.mlp.c_proj"], ["h.0.mlp.c_proj"]),  # its last name is another layer's too
        (["h.0.mlp.c_fc", "h.0.attn.c_proj"], ["h.0.attn.c_proj", "h.0.mlp.c_fc"]),
    ],
)
def test_target_modules_are_short_where_that_is_unambiguous(chosen, modules):
    assert target_modules(chosen, LINEAR) == modules


def test_peft_selects_single_layers_by_their_whole_paths(tmp_path):
    """A stream over a part of the layers called c_proj, which only whole paths can name."""
    model = two_streams("gpt2")
    paths = [path for path in model.paths if path.endswith("mlp.c_proj")]
    adapter = {k: t for k, t in model.read(R).items() if k.rpartition(".lora")[0] in paths}
    modules = target_modules(paths, model.module_paths)
    write_adapter(tmp_path, adapter, AdapterSettings(3, 6.0, modules, "base", True))
    assert adapted(PeftModel.from_pretrained(make("gpt2"), tmp_path)) == set(paths)
