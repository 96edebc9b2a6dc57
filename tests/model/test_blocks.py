"""Adapters on some blocks: PEFT agrees on which, and the backward pass ends at the lowest."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.protocol.agreement import agreement_digest
from fedsdr.deploy.server.engine import adapter_shape
from fedsdr.model.blocks import BlockChoice, choose_blocks
from fedsdr.model.checkpointing import recompute_activations
from fedsdr.model.layers import select_layers
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.peft_format import CONFIG, read_adapter, read_settings, settings_of, write_adapter
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run import run_recipe
from support.tiny_models import FAMILIES, NAMED, logits, make, random_adapter, random_ids
from support.tiny_recipe import write_recipe

# PEFT 0.21 reads an attribute that transformers 5 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

R = Stream.RECTIFY
IDS = random_ids(2, 9)
LISTS = {"gpt2": "transformer.h"}  # of the other families: "model.layers"
families = pytest.mark.parametrize("family", FAMILIES)


def adapted(peft_model) -> set[str]:
    return {
        name.removeprefix("base_model.model.")
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    }


def streams(family: str, layers, targets="all-linear") -> TwoStreamModel:
    model = TwoStreamModel(make(family), targets, 3, 6.0, layers)
    model.load(R, random_adapter(model.read(R), 1))
    return model


# --- Which layers


@families
def test_the_trained_tensors_are_those_that_peft_trains(family):
    config = LoraConfig(
        r=3, target_modules=list(NAMED[family]), layers_to_transform=[1],
        layers_pattern=LISTS.get(family, "layers").rpartition(".")[2],
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    theirs = get_peft_model(make(family), config)
    ours = streams(family, [1], NAMED[family])
    assert adapted(theirs) == set(ours.paths)
    trained = {name for name, each in theirs.named_parameters() if each.requires_grad}
    assert {name.replace(".default", "") for name in trained} == {
        f"base_model.model.{key}" for key in ours.train_only(R)
    }


@families
@pytest.mark.parametrize("kind", ["all-linear", "named"])
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1), "upper_half"])
def test_peft_loads_the_adapter_with_the_same_layers_and_logits(tmp_path, family, kind, layers):
    ours = streams(family, layers, NAMED[family] if kind == "named" else kind)
    settings = settings_of(ours, "base")
    write_adapter(tmp_path, ours.read(R), settings)
    loaded = PeftModel.from_pretrained(make(family), tmp_path).eval()
    ours.activate(R)
    torch.testing.assert_close(logits(loaded, IDS), logits(ours.model, IDS), rtol=0, atol=1e-5)
    assert adapted(loaded) == set(ours.paths)
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written["layers_to_transform"] == ([1] if layers == "upper_half" else list(layers))
    assert written["layers_pattern"] == LISTS.get(family, "layers").rpartition(".")[2]
    assert not any("." in name for name in written["target_modules"])  # no layer is spelt out
    again = read_settings(tmp_path)
    assert (list(again.layers), again.layers_pattern) == (
        list(settings.layers),
        settings.layers_pattern,
    )
    assert sorted(again.modules) == sorted(settings.modules)


@families
def test_all_is_every_layer_and_names_none_in_the_file(tmp_path, family):
    ours = streams(family, "all")
    assert ours.paths == select_layers(make(family), "all-linear")
    write_adapter(tmp_path, ours.read(R), settings_of(ours, "base"))
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written["layers_to_transform"] is written["layers_pattern"] is None


@pytest.mark.parametrize(("count", "upper"), [(1, (0,)), (2, (1,)), (5, (2, 3, 4))])
def test_the_upper_half_is_from_the_middle_on(count, upper):
    model = nested(layers=count)
    assert choose_blocks(model, "upper_half", linear(model)) == BlockChoice("layers", upper)


def nested(**lists: int) -> nn.Module:
    """Lists of blocks of two experts each, in a list of their own."""
    return nn.ModuleDict(
        {
            name: nn.ModuleList(
                nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
                for _ in range(count)
            )
            for name, count in lists.items()
        }
    )


def linear(model: nn.Module) -> list[str]:
    return [path for path, each in model.named_modules() if isinstance(each, nn.Linear)]


def test_a_block_is_a_member_of_the_outermost_list():
    model = nested(layers=3)
    chosen = choose_blocks(model, [1], linear(model))
    assert chosen == BlockChoice("layers", (1,))
    assert [path for path in linear(model) if chosen.includes(path)] == [
        "layers.1.experts.0", "layers.1.experts.1",
    ]  # fmt: skip


def test_a_model_with_several_lists_of_blocks_is_refused():
    model = nested(encoder=2, decoder=2)
    with pytest.raises(UserError, match=r"has encoder, decoder: set it to 'all'"):
        choose_blocks(model, "upper_half", linear(model))
    assert choose_blocks(model, "all", linear(model)) is None
    with pytest.raises(UserError, match="has none: set it to 'all'"):
        choose_blocks(model, [0], [])


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="names layer 2, and this model has 2: choose from 0 to 1"):
        select_layers(make("llama"), "all-linear", [1, 2])
    with pytest.raises(UserError, match="'w1', which this model does not have in layers 1: "):
        select_layers(make("llama"), ["w1"], [1])


@pytest.mark.parametrize(
    ("text", "value"), [("[3, 1]", (1, 3)), ("all", "all"), ("upper_half", "upper_half")]
)
def test_a_recipe_names_layers(tmp_path, text, value):
    recipe = load_recipe(write_recipe(tmp_path), [f"lora.layers={text}"])
    assert recipe.lora.layers == value


@pytest.mark.parametrize("text", ["[]", "[1, 1]", "[-1]", "[true]", "[0.5]", "lower_half", "1"])
def test_other_values_are_refused_in_one_line(tmp_path, text):
    with pytest.raises(UserError, match=r"lora\.layers = .*: expected \"all\", \"upper_half\" or "):
        load_recipe(write_recipe(tmp_path), [f"lora.layers={text}"])


# --- The backward pass


@families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_pass_ends_at_the_lowest_adapted_block(family, checkpointing):
    """No output of a lower block needs a gradient, and autograd visits none."""
    ours = streams(family, [1])
    blocks = ours.model.get_submodule(LISTS.get(family, "model.layers"))
    needs: list[bool] = []
    visited: set[int] = set()

    def forward_hook(number):
        def hook(module, arguments, output):
            states = output if isinstance(output, torch.Tensor) else output[0]
            needs.append(states.requires_grad)
            if states.requires_grad:
                states.register_hook(lambda gradient: visited.add(number))

        return hook

    for number, block in enumerate(blocks):
        block.register_forward_hook(forward_hook(number))
    parameters = ours.train_only(R)
    ours.activate(R)
    with recompute_activations(ours.model, checkpointing):
        ours.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert needs == [False, True]
    assert visited == {1}
    assert all(each.grad is not None and each.grad.any() for each in parameters.values())


@families
def test_gradients_are_those_of_a_model_that_is_adapted_everywhere(family):
    """R is zero in its lower layers there."""
    ours = streams(family, [1])
    mine = ours.read(R)
    whole = TwoStreamModel(make(family), "all-linear", 3, 6.0)
    whole.load(R, {**whole.blank(), **mine})
    found = []
    for each in (ours, whole):
        parameters = each.train_only(R)
        each.activate(R)
        each.model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        found.append({key: parameters[key].grad for key in mine})
    for key in mine:
        torch.testing.assert_close(found[0][key], found[1][key], rtol=1e-5, atol=1e-7)


# --- Runs


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with adapters on the upper one of two layers: its recipe and its folder."""
    folder = tmp_path_factory.mktemp("plain")
    recipe = write_recipe(folder, federation={"rounds": 2, "targets": "two_stream"})
    run_recipe(load_recipe(recipe, ["lora.layers=[1]"]), folder / "out", silent_reporter())
    return recipe, folder / "out"


def test_a_run_has_adapters_in_those_layers_alone(plain):
    _, out = plain
    for folder in (out / "global", out / "clients" / "anna" / "private"):
        adapter = read_adapter(folder)
        assert {key.split(".")[2] for key in adapter} == {"1"}
        assert any(tensor.any() for key, tensor in adapter.items() if "lora_B" in key)
        assert list(read_settings(folder).layers) == [1]


@pytest.mark.parametrize("change", ["local.cohort=3", "model.gradient_checkpointing=true"])
def test_other_ways_to_train_them_give_the_same_adapters(plain, tmp_path, change):
    recipe, out = plain
    changed = load_recipe(recipe, ["lora.layers=[1]", change])
    run_recipe(changed, tmp_path / "out", silent_reporter())
    first, second = (read_adapter(folder / "global") for folder in (out, tmp_path / "out"))
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5)


def test_a_server_knows_the_layers_and_sites_must_agree_on_them(plain):
    path, _ = plain
    recipe = load_recipe(path, ["lora.layers=[1]"])
    shape = adapter_shape(recipe, silent_reporter())
    loaded = prepare_run(recipe).load(silent_reporter())
    assert shape.first.keys() == loaded.model.blank().keys()
    assert list(shape.settings.layers) == [1]
    assert agreement_digest(recipe) != agreement_digest(load_recipe(path))


def test_check_refuses_layers_that_are_not_there(plain):
    path, _ = plain
    with pytest.raises(UserError, match="names layer 9, and this model has 2: choose from 0 to 1"):
        prepare_run(load_recipe(path, ["lora.layers=[9]"]))


def test_a_run_begun_before_there_was_a_choice_has_all_layers(tmp_path):
    path = write_recipe(tmp_path, federation={"rounds": 1})
    out = tmp_path / "out"
    run_recipe(load_recipe(path), out, silent_reporter())
    noted = out / "recipe.toml"
    lines = noted.read_text().splitlines(keepends=True)
    older = [line for line in lines if line != 'layers = "all"\n']
    assert len(older) == len(lines) - 1
    noted.write_text("".join(older))
    assert run_recipe(load_recipe(path), out, silent_reporter(), resume=True)["own"]
