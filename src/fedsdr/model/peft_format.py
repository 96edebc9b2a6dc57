"""PEFT's file format: a stream is written as an ordinary PEFT adapter folder.

`PeftModel.from_pretrained(base, folder)` loads it. PEFT names tensors
`base_model.model.<path>.lora_A.weight`; ours lack the prefix.
"""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

from peft import LoraConfig, PeftModel
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from fedsdr.core import files
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, Adapter, layer_paths
from fedsdr.core.errors import UserError
from fedsdr.model.lora import TwoStreamModel

PREFIX: Final = "base_model.model."
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"


class _Config(BaseModel):
    """The keys of adapter_config.json that are read."""

    r: Annotated[int, Field(gt=0)]
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)]
    target_modules: list[str]
    target_parameters: list[str] | None = None
    base_model_name_or_path: str
    fan_in_fan_out: bool
    lora_dropout: float = 0.0
    layers_to_transform: list[int] | None = None
    layers_pattern: str | None = None


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of an adapter that its tensors do not hold.

    modules: target_modules of adapter_config.json. dropout: that it was trained with. parameters:
    target_parameters, the weights of layers that PEFT would not find by their names. layers,
    layers_pattern: layers_to_transform, the numbers of the adapted blocks, and the name of their
    list; () and "" for all. All of these together select exactly the adapted layers.
    """

    rank: int
    alpha: float
    modules: Sequence[str]
    base_model: str
    fan_in_fan_out: bool = False
    dropout: float = 0.0
    parameters: Sequence[str] = ()
    layers: Sequence[int] = ()
    layers_pattern: str = ""


def settings_of(model: TwoStreamModel, base: str, dropout: float = 0.0) -> AdapterSettings:
    """The settings by which PEFT applies a model's adapters to the base model called `base`."""
    blocks = model.blocks
    there = [each for each in model.module_paths if blocks is None or blocks.selects(each)]
    modules = target_modules(model.paths, there)
    parameters: list[str] = []
    if experts := _taken_for_experts(model.model, modules):
        modules = [each for each in modules if each not in experts]
        names = {each.rpartition(".")[2] for each in experts}
        found = [path for path in model.paths if path.rpartition(".")[2] in names]
        parameters = [f"{path}.weight" for path in found if path not in modules]
    numbers, pattern = ((), "") if blocks is None else (blocks.numbers, blocks.pattern)
    return AdapterSettings(
        model.rank, model.alpha, modules, base, model.transposed, dropout, parameters,
        numbers, pattern,
    )  # fmt: skip


def _taken_for_experts(model: Any, modules: Sequence[str]) -> set[str]:
    """Those of target_modules under which PEFT would adapt the experts of a mixture.

    It reads gate_proj, up_proj and down_proj as what experts were called in transformers 4, and
    leaves the shared experts and dense layers of these names without an adapter.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an older PEFT, which does not
        return set()
    taken = set()
    for each in modules:
        config = LoraConfig(target_modules=[each])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of several that it would fuse
            taken.add(each)
        if each not in config.target_modules:
            taken.add(each)
    return taken


def write_adapter(
    folder: Path, adapter: Adapter, settings: AdapterSettings, private: bool = False
) -> None:
    """Write adapter_config.json and adapter_model.safetensors; the weights come last.

    Layers may have ranks of their own (an exact aggregation's have): the scale alpha / rank of
    `settings` applies to all of them.
    """
    ranks = {path: adapter[path + A_SUFFIX].shape[0] for path in layer_paths(adapter)}
    scale = settings.alpha / settings.rank
    named: dict[str, Any] = {}
    if settings.parameters:
        named["target_parameters"] = list(settings.parameters)
    if settings.layers:
        named["layers_to_transform"] = list(settings.layers)
        named["layers_pattern"] = settings.layers_pattern
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
        # PEFT has none for target_parameters.
        lora_dropout=0.0 if settings.parameters else settings.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=settings.base_model,
        **named,
    )
    files.make_folder(folder, private)
    files.write_text(folder / CONFIG, _as_text(config), private=private)
    tensors = {PREFIX + key: tensor for key, tensor in adapter.items()}
    files.write_tensors(folder / WEIGHTS, tensors, {"format": "pt"}, private=private)


def attach_adapter(model: Any, adapter: Adapter, settings: AdapterSettings) -> Any:
    """A base model with an adapter on it, frozen and in evaluation mode, as PEFT loads it."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():  # readable by its owner alone
        # PEFT asks for an attribute that transformers is about to rename.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")
        write_adapter(Path(folder), adapter, settings)
        return PeftModel.from_pretrained(model, folder).eval()


def _as_text(config: LoraConfig) -> str:
    """What PEFT would write; by itself it writes in place, and for all to read.

    Its sets are sorted, so that the same adapter is the same bytes in every process.
    """
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        written = files.read_json(Path(folder) / CONFIG)
    if isinstance(written["target_modules"], list):
        written["target_modules"].sort()
    return json.dumps(written, indent=2, sort_keys=True)


def read_adapter(folder: Path) -> Adapter:
    """The tensors of a PEFT LoRA folder under our names: both factors of each layer, no others.

    Raises `UserError` for any other file.
    """
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
    adapter = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    paths = {key.removesuffix(A_SUFFIX).removesuffix(B_SUFFIX) for key in adapter}
    for path in sorted(paths):
        if not _is_pair(adapter.get(path + A_SUFFIX), adapter.get(path + B_SUFFIX)):
            raise UserError(
                f"{folder / WEIGHTS}: layer {path!r} is no pair of LoRA factors: expected floats "
                "A (r, in) and B (out, r)"
            )
    return adapter


def _is_pair(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        return False
    return a.is_floating_point() and b.is_floating_point()


def read_settings(folder: Path) -> AdapterSettings:
    """The settings with which `write_adapter` wrote this folder; `UserError` for any other file."""
    try:
        config = _Config.model_validate(files.read_json(folder / CONFIG))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its value"
        raise UserError(f"{folder / CONFIG}: {place}: {first['msg']}") from error
    return AdapterSettings(
        config.r,
        config.lora_alpha,
        config.target_modules,
        config.base_model_name_or_path,
        config.fan_in_fan_out,
        config.lora_dropout,
        config.target_parameters or (),
        config.layers_to_transform or (),
        config.layers_pattern or "",
    )


def target_modules(adapted: Sequence[str], there: Sequence[str]) -> list[str]:
    """The shortest target_modules that select the adapted layers and no other module.

    there: paths of all modules of the model. PEFT takes a module whose path ends with a given
    name: last name parts where those are unambiguous, whole paths otherwise.
    """
    names = {path.rpartition(".")[2] for path in adapted}
    selected = {path for path in there if path.rpartition(".")[2] in names}
    return sorted(names) if selected == set(adapted) else sorted(adapted)
