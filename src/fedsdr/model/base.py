"""Loading a base model: any causal language model that transformers loads, with its tokenizer."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fedsdr.core.errors import UserError
from fedsdr.data.template import ChatFormat
from fedsdr.data.template_probe import check_template
from fedsdr.model.fit import check_fits
from fedsdr.model.folder import check_model_path, check_weight_files
from fedsdr.model.identity import Identity, model_identity
from fedsdr.model.quantised import check_quantisation, keep_differentiable, loading_options
from fedsdr.model.trials import check_causal
from fedsdr.recipe.sections.model import TEMPLATE_DATE, Model

UNBOUNDED: Final = 2**20  # tokens, for models whose positions are computed and not stored
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A frozen base model and how to talk to it. identity: as it was loaded, without adapters."""

    model: Any
    chat: ChatFormat
    path: str
    identity: Identity

    @property
    def pad(self) -> int:
        """Any valid id does: padding is masked out of attention and loss."""
        return self.chat.end_of_turn

    @property
    def description(self) -> dict[str, str | int]:
        """What was loaded, and where to: for people, and for a run's record."""
        config = getattr(self.model.config, "quantization_config", None)
        return {
            "parameters": self.model.num_parameters(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantisation": "none" if config is None else str(config.quantization_method()),
            "device": str(self.model.device),
            "template": self.chat.source,
        }

    @property
    def context(self) -> int:
        """The number of positions that the model was made for."""
        return context_positions(self.model.config)


def load_base(
    path: str,
    template: str = "auto",
    dtype: str = "float32",
    device: str = "auto",
    quantisation: str = "none",
    memory_check: bool = True,
    date: str = TEMPLATE_DATE,
    thinking: str = "off",
) -> LoadedModel:
    """Load a model folder or hub name onto a device, frozen and in evaluation mode.

    Weights come from safetensors files alone: a pickle would run its author's code. A model that
    looks ahead in a text, or cannot be run on one, is refused.
    """
    tokenizer = load_tokenizer(path)
    place = choose_device(device)
    check_weight_files(path)
    if memory_check:
        check_fits(path, choose_dtype(dtype, place), quantisation, place)
    model = _load_weights(path, choose_dtype(dtype, place), quantisation, place)
    model.requires_grad_(False)
    model.eval()
    if quantisation == "none":  # else it is there already
        model.to(place)
    keep_differentiable(model)  # a checkpoint may have been saved quantised
    check_causal(model, path)
    chat = ChatFormat(tokenizer, template, date, declared_ends(path), thinking)
    check_template(chat)
    return LoadedModel(model, chat, path, model_identity(model, chat))


def _load_weights(path: str, dtype: torch.dtype, quantisation: str, place: torch.device) -> Any:
    """The model with its weights; raises `UserError` unless they are complete and its own."""
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **loading_options(quantisation, dtype, place),
        )
    except Exception as error:  # transformers and safetensors raise what they like
        raise UserError(f"cannot load a causal language model from {path!r}: {error}") from error
    if mismatched := sorted(loading["mismatched_keys"]):
        name, held, built = mismatched[0]
        raise UserError(
            f"the weights of {path!r} do not fit its config.json: {name!r} is {list(held)}, and a "
            f"model of that configuration has {list(built)}: give the config.json of these weights"
        )
    if missing := sorted(loading["missing_keys"]):  # transformers would draw them at random
        raise UserError(
            f"the weights of {path!r} lack {len(missing)} of the model's tensors, {missing[0]!r} "
            "among them: give a folder saved from a causal language model"
        )
    if model._hf_peft_config_loaded:  # transformers found one at the hub and loaded it too
        raise UserError(
            f"the weights of {path!r} come with an adapter (adapter_config.json): merge it into "
            "them (merge_and_unload, then save_pretrained), and give the new folder"
        )
    return model


def check_model(
    path: str,
    template: str = "auto",
    device: str = "auto",
    quantisation: str = "none",
    thinking: str = "off",
) -> None:
    """Raise the errors of `load_base` that cost little, before any work starts."""
    choose_device(device)
    check_quantisation(quantisation)
    check_template(ChatFormat(load_tokenizer(path), template, thinking=thinking))
    check_weight_files(path)


def load_chat(path: str, options: Model) -> ChatFormat:
    """A model folder's tokenizer and template as a recipe has them, without its weights."""
    tokenizer, ends = load_tokenizer(path), declared_ends(path)
    return ChatFormat(tokenizer, options.template, options.date, ends, options.thinking)


def declared_ends(path: str) -> frozenset[int]:
    """The tokens that a model folder or hub name declares to end a text, in its config.json and in
    its generation_config.json."""
    configs: list[Any] = [AutoConfig.from_pretrained(path)]
    with contextlib.suppress(OSError):  # it is there or not
        configs.append(GenerationConfig.from_pretrained(path))
    return end_tokens(*configs)


def end_tokens(*configs: Any) -> frozenset[int]:
    """The `eos_token_id` of configurations: one id, several, or None."""
    found = (getattr(config, "eos_token_id", None) for config in configs)
    return frozenset().union(
        *({ids} if isinstance(ids, int) else set(ids) for ids in found if ids is not None)
    )


def context_of(path: str) -> int:
    """The number of positions that a model was made for, without loading its weights."""
    config = AutoConfig.from_pretrained(path)
    return context_positions(config)


def context_positions(config: Any) -> int:
    """The number of positions of a configuration; 2^20 where it states none."""
    return int(getattr(config, "max_position_embeddings", None) or UNBOUNDED)


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model folder or hub name. Raises `UserError` where it cannot be used."""
    check_model_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]  # the hub's go on for many lines
        raise UserError(
            f"cannot load a tokenizer from model.path = {path!r} ({reason}): give a model folder "
            "(./FOLDER), or a name that the hub has"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {path!r} has no eos_token, so generation could not stop: "
            "set it in tokenizer_config.json"
        )
    return tokenizer


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU where there is one. Raises `UserError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.empty(0, device=name).device  # torch has no question that covers every kind
    except Exception as error:  # which it raises depends on how torch was built
        reason = str(error).partition("\n")[0].partition(". ")[0]  # then torch lists its kernels
        raise UserError(f"model.device = {name!r} cannot be used ({reason}): use auto") from error
    if place.type == "meta":
        raise UserError(f"model.device = {name!r} holds shapes and no values: use auto")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU that computes in it, "native" also on such a CPU; float32
    elsewhere."""
    if name in DTYPES:
        return DTYPES[name]
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "native" and device.type == "cpu":
        # Absent before torch 2.10.
        capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
        fast = bool(capabilities().get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32
