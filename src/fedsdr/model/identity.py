"""The identity of a model: digests of all that its answers depend on, part by part.

Stored results of a model (cached rewrites, evaluations, answers, checkpoints), and the members of a
federation, compare identities, since names and paths stay the same when a model changes.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor

from fedsdr.core.adapters import Adapter
from fedsdr.data.template import ChatFormat
from fedsdr.model.lora import Stream

Identity = Mapping[str, str]  # part of a model, as messages name it -> a digest, or a short value
FORMAT: Final = ("dtype", "quantisation")  # parts without which digests of weights do not compare
# Keys of configurations that record a model's origin, or are parts of the identity themselves.
APART: Final = ("transformers_version", "dtype", "torch_dtype", "quantization_config")


def model_identity(model: Any, chat: ChatFormat) -> Identity:
    """The identity of a base model as loaded, without adapters. Reads all weights once, at about
    1 GB/s."""
    config = model.config.to_diff_dict()
    quantisation = config.get("quantization_config")
    generation = _without_origin(model.generation_config.to_diff_dict())
    return {
        "weights": tensors_digest(model.state_dict()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantisation": content_digest(quantisation) if quantisation else "none",
        "configuration": content_digest(_without_origin(config)),
        **chat_identity(chat),
        "generation settings": content_digest([sorted(chat.ends), generation]),
    }


def chat_identity(chat: ChatFormat) -> Identity:
    """The part of an identity that needs no weights."""
    tokenizer = content_digest(_tokenizer_content(chat.tokenizer))
    return {"tokenizer": tokenizer, "chat template": content_digest(chat.template)}


def adapted_identity(base: Identity, adapters: Mapping[Stream, Adapter], scale: float) -> Identity:
    """The identity of a base model with adapters scaled by alpha / rank; the base's without any."""
    tensors = {f"{stream}/{key}": t for stream, each in adapters.items() for key, t in each.items()}
    if not tensors:
        return base
    return {**base, "adapters": content_digest([tensors_digest(tensors), scale])}


def identity_text(identity: Identity) -> str:
    """An identity as a line of text, the same for the same identity."""
    return json.dumps(dict(identity), sort_keys=True)


def read_identity(text: str) -> Identity:
    """What `identity_text` wrote; {} for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    valid = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if valid else {}


def identity_digest(identity: Identity) -> str:
    """One digest of the whole."""
    return content_digest(identity_text(identity))


def differing_parts(known: Identity, now: Identity) -> list[str]:
    """The parts of `known` that are otherwise in `now`, or not in it."""
    return [part for part in known if now.get(part) != known[part]]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, shapes, dtypes and all values, in name order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        step = max(1, 2**26 // max(1, flat.element_size()))
        for start in range(0, math.prod(tensor.shape), step):
            digest.update(flat[start : start + step].view(torch.uint8).numpy().data)
    return digest.hexdigest()


def content_digest(content: Any) -> str:
    """A digest of JSON content; values that JSON cannot hold enter as `str` prints them."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _tokenizer_content(tokenizer: Any) -> list[Any]:
    """How texts become ids and ids texts, whatever folder that was read from."""
    added = {i: repr(token) for i, token in tokenizer.added_tokens_decoder.items()}
    content = [added, tokenizer.special_tokens_map, tokenizer.clean_up_tokenization_spaces]
    if tokenizer.is_fast:
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        # These two change whenever a batch is tokenised.
        return [*content, {**core, "padding": None, "truncation": None}]
    switches = {k: v for k, v in tokenizer.init_kwargs.items() if isinstance(v, int)}
    switches |= dict.fromkeys(("is_local", "local_files_only"), 0)  # of loading
    with TemporaryDirectory() as folder:
        files = [Path(path).read_bytes().hex() for path in tokenizer.save_vocabulary(folder)]
    return [*content, type(tokenizer).__name__, switches, files]


def _without_origin(config: Any) -> Any:
    """A configuration, nested ones too, without `APART` and without private keys."""
    if not isinstance(config, dict):
        return config
    return {
        str(key): _without_origin(value)
        for key, value in config.items()
        if key not in APART and not str(key).startswith("_")
    }
