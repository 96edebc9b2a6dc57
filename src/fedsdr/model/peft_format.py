"""PEFT's file format: a stream is written as an ordinary PEFT adapter folder.

`PeftModel.from_pretrained(base, folder)` loads it. PEFT names tensors
`base_model.model.<path>.lora_A.weight`; ours lack the prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from peft import LoraConfig

from fedsdr import files
from fedsdr.adapters import A_SUFFIX, B_SUFFIX, Adapter
from fedsdr.errors import UserError

PREFIX: Final = "base_model.model."
WEIGHTS: Final = "adapter_model.safetensors"


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
    """Write adapter_config.json and adapter_model.safetensors; the weights come last."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
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


def target_modules(adapted: Sequence[str], linear: Sequence[str]) -> list[str]:
    """The shortest target_modules that select the adapted layers and no other linear layer.

    PEFT takes a layer whose path ends with a given name: last name parts where those are
    unambiguous, whole paths otherwise.
    """
    names = {path.rpartition(".")[2] for path in adapted}
    selected = {path for path in linear if path.rpartition(".")[2] in names}
    return sorted(names) if selected == set(adapted) else sorted(adapted)
