"""Whatever an adapter's folder holds: pairs of LoRA factors and settings, or a `UserError`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, layer_paths, rank_of
from fedsdr.model.peft_format import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    AdapterSettings,
    read_adapter,
    read_settings,
    write_adapter,
)
from support.fuzzing import JUNK, fuzzed, mutated, value_or_user_error
from support.toy_clients import random_adapter

SETTINGS = AdapterSettings(2, 4.0, ["x", "y"], "base")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter's folder as it should be."""
    folder = tmp_path_factory.mktemp("whole")
    write_adapter(folder, random_adapter("fuzz", dtype=torch.float32), SETTINGS)
    return folder


def check_weights(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS).write_bytes(data)
    adapter = value_or_user_error(folder, lambda: read_adapter(folder))
    for path in layer_paths(adapter or {}):
        a, b = adapter[path + A_SUFFIX], adapter[path + B_SUFFIX]
        assert (b.double() @ a.double()).dim() == 2
    rank_of(adapter or {})


@fuzzed
@given(data=st.data())
def test_files_of_weights_that_were_changed(whole, tmp_path, data):
    original = (whole / WEIGHTS).read_bytes()
    check_weights(tmp_path, data.draw(mutated(st.just(original)) | st.binary(max_size=60)))


KEYS = st.sampled_from(
    [
        f"{prefix}{path}{suffix}"
        for prefix in (PREFIX, PREFIX, "", "base_model.")
        for path in ("layers.0.x", "", "../x", "ä\0")
        for suffix in (A_SUFFIX, A_SUFFIX, B_SUFFIX, B_SUFFIX, ".weight", "")
    ]
)
SHAPES = st.lists(st.integers(0, 3), max_size=3)
KINDS = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]


@fuzzed
@given(tensors=st.dictionaries(KEYS, st.tuples(SHAPES, st.sampled_from(KINDS)), max_size=4))
def test_tensors_of_any_names_shapes_and_kinds(tmp_path, tensors):
    made = {key: torch.zeros(shape, dtype=kind) for key, (shape, kind) in tensors.items()}
    check_weights(tmp_path, save(made))


READ = ["r", "lora_alpha", "target_modules", "base_model_name_or_path", "fan_in_fan_out"]


def check_config(folder: Path, data: bytes) -> None:
    (folder / CONFIG).write_bytes(data)
    settings = value_or_user_error(folder, lambda: read_settings(folder))
    assert settings is None or settings.rank > 0


@fuzzed
@given(changes=st.dictionaries(st.sampled_from(READ), JUNK), whole_value=JUNK, as_is=st.booleans())
def test_configurations_with_other_values(whole, tmp_path, changes, whole_value, as_is):
    config: Any = json.loads((whole / CONFIG).read_text()) | changes
    check_config(tmp_path, json.dumps(whole_value if as_is else config).encode())


@fuzzed
@given(data=st.data())
def test_configurations_that_were_changed(whole, tmp_path, data):
    original = (whole / CONFIG).read_bytes()
    deep = st.sampled_from([b"[" * 100_000, b'{"r": ' + b"9" * 5000 + b"}", b"\xff", b""])
    check_config(tmp_path, data.draw(mutated(st.just(original)) | deep))


def test_an_adapter_that_was_not_changed_is_read(whole):
    found = read_settings(whole)
    assert replace(found, modules=sorted(found.modules)) == SETTINGS
    assert layer_paths(read_adapter(whole)) == ["layers.0.x", "layers.1.y"]
