"""PEFT's file format: a stream is written as an ordinary PEFT adapter folder.

`PeftModel.from_pretrained(base, folder)` loads it. PEFT names tensors
`base_model.model.<path>.lora_A.weight`; ours lack the prefix.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from peft import LoraConfig

from fedsdr import files
from fedsdr.adapters import A_SUFFIX, B_SUFFIX, Adapter, layers
from fedsdr.errors import UserError

PREFIX: Final = "base_model.model."
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter's tensors do not say: alpha, the base model, GPT-2's transposed layers.

    modules: target_modules of adapter_config.json; must select exactly the adapted layers.
    """

    rank: int
    alpha: float
    modules: Sequence[str]
    base_model: str
    fan_in_fan_out: bool = False


def write_adapter(
    folder: Path, adapter: Adapter, settings: AdapterSettings, private: bool = False
) -> None:
    """Write adapter_config.json and adapter_model.safetensors; the weights come last.

    Layers may have ranks of their own (an exact aggregation's have): the scale alpha / rank of
    `settings` is everybody's.
    """
    ranks = {path: adapter[path + A_SUFFIX].shape[0] for path in layers(adapter)}
    scale = settings.alpha / settings.rank
    # As many layers as possible by one number, the others by name.
    usual = max(ranks.values(), key=list(ranks.values()).count)
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    config = LoraConfig(
        r=usual,
        lora_alpha=scale * usual,
        rank_pattern={re.escape(path): rank for path, rank in others.items()},
        alpha_pattern={re.escape(path): scale * rank for path, rank in others.items()},
        target_modules=list(settings.modules),
        fan_in_fan_out=settings.fan_in_fan_out,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=settings.base_model,
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
    config.save_pretrained(folder)
    tensors = {PREFIX + key: tensor for key, tensor in adapter.items()}
    files.write_tensors(folder / WEIGHTS, tensors, {"format": "pt"}, private=private)


def read_adapter(folder: Path) -> Adapter:
    """The tensors of a PEFT LoRA folder under our names; every key must be a LoRA factor's."""
    tensors, _ = files.read_tensors(folder / WEIGHTS)
    strange = [
        key
        for key in tensors
        if not key.startswith(PREFIX) or not key.endswith((A_SUFFIX, B_SUFFIX))
    ]
    if strange:
        raise UserError(
            f"{folder / WEIGHTS} has the key {strange[0]!r}: expected only "
            f"{PREFIX}<layer>{A_SUFFIX} and {PREFIX}<layer>{B_SUFFIX}"
        )
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}


def read_settings(folder: Path) -> AdapterSettings:
    """What `write_adapter` was told when it wrote this folder."""
    config = files.read_json(folder / CONFIG)
    return AdapterSettings(
        rank=config["r"],
        alpha=config["lora_alpha"],
        modules=config["target_modules"],
        base_model=config["base_model_name_or_path"],
        fan_in_fan_out=config["fan_in_fan_out"],
    )


def target_modules(adapted: Sequence[str], linear: Sequence[str]) -> list[str]:
    """The shortest target_modules that select the adapted layers and no other linear layer.

    PEFT takes a layer whose path ends with a given name: last name parts where those are
    unambiguous, whole paths otherwise.
    """
    names = {path.rpartition(".")[2] for path in adapted}
    selected = {path for path in linear if path.rpartition(".")[2] in names}
    return sorted(names) if selected == set(adapted) else sorted(adapted)
