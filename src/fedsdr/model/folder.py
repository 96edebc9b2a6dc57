"""Checks of a model folder by its files alone, before it is loaded."""

import json
import math
import re
from pathlib import Path
from typing import Final, NamedTuple

from safetensors import safe_open

from fedsdr.core.errors import UserError

CONFIG_FILE: Final = "config.json"
MODEL_WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
ADAPTER: Final = "adapter_config.json"
FOLDER_MARKS: Final = (".", "/", "~")  # how a path begins that is no hub name


def check_model_path(path: str) -> None:
    """Raise `UserError` where `path` can be neither a folder of a model nor a hub name."""
    folder = Path(path)
    if folder.is_file() or (path.startswith(FOLDER_MARKS) and not folder.is_dir()):
        raise UserError(f"model.path = {path!r} is not a folder: give a Hugging Face model folder")
    if not folder.is_dir():
        return
    if (folder / ADAPTER).is_file():
        raise _within(folder) if _has_weights(folder) else _alone(folder)
    if not (folder / CONFIG_FILE).is_file():
        if files := _gguf_files(folder):
            raise _only_gguf(path, files[0])
        raise UserError(f"model.path = {path!r} has no config.json: it is not a model folder")
    if not has_tokenizer(folder):
        raise UserError(
            f"model.path = {path!r} has no tokenizer: save one into the folder with "
            "tokenizer.save_pretrained(...)"
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds files of a tokenizer."""
    return any(folder.glob("*token*")) or any(folder.glob("vocab*"))


def check_weight_files(path: str) -> None:
    """Raise `UserError` unless a folder holds all its weights as safetensors, none cut short.

    Reads headers and no tensors. Names on the hub are not checked.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    if (folder / MODEL_WEIGHTS).is_file():
        return _check_shard(folder / MODEL_WEIGHTS)
    if (folder / INDEX).is_file():
        for name, tensors in _shards(folder / INDEX).items():
            if not (folder / name).is_file():
                raise UserError(
                    f"model.path = {path!r} lacks {name}, which its {INDEX} names: fetch or copy "
                    "the folder again, whole"
                )
            _check_shard(folder / name, tensors)
        return None
    raise _no_weights(path)


def _no_weights(path: str) -> UserError:
    folder = Path(path)
    if pickles := sorted(each.name for each in folder.glob("*.bin")):
        return UserError(
            f"model.path = {path!r} holds its weights as {pickles[0]}, a pickle, which is "
            "never loaded: convert them to safetensors once, where you trust their author, by "
            f"AutoModelForCausalLM.from_pretrained({path!r}).save_pretrained(NEW_FOLDER), and "
            "AutoTokenizer likewise"
        )
    if files := _gguf_files(folder):
        return _only_gguf(path, files[0])
    if shards := sorted(each.name for each in folder.glob("model-*.safetensors")):
        return UserError(
            f"model.path = {path!r} holds {shards[0]} and no {INDEX}: fetch or copy the folder "
            "again, whole"
        )
    return UserError(
        f"model.path = {path!r} holds no weights: expected {MODEL_WEIGHTS} next to config.json"
    )


def check_token_table(path: str, name: str, rows: int) -> None:
    """Raise `UserError` where a folder's weights have a table of another size than configured.

    name: of the embedding's tensor; one that is stored under another name is not looked at.
    """
    file = _file_of(Path(path), name)
    if file is None:
        return
    with safe_open(file, framework="pt") as handle:
        shape = handle.get_slice(name).get_shape() if name in handle.keys() else [rows]  # noqa: SIM118
    if shape[0] != rows:
        raise UserError(
            f"model.path = {path!r}: config.json says vocab_size = {rows}, and {name} in "
            f"{file.name} has {shape[0]} rows: set vocab_size = {shape[0]} in config.json"
        )


class StoredTensor(NamedTuple):
    """What a safetensors header says of a tensor. kind: as "BF16" or "U8"."""

    kind: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it has an ordinary floating-point type, of 16 bits at least."""
        return self.kind in ("F64", "F32", "F16", "BF16")

    @property
    def size(self) -> int:
        """Its bytes."""
        bits = re.search(r"\d+", self.kind)
        return -(-math.prod(self.shape) * int(bits[0] if bits else 8) // 8)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model folder's weights, by name; reads headers alone.

    Raises `UserError` as `check_weight_files` does.
    """
    check_weight_files(str(folder))
    whole = (folder / MODEL_WEIGHTS).is_file()
    found = {}
    for name in [MODEL_WEIGHTS] if whole else _shards(folder / INDEX):
        with safe_open(folder / name, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118
                held = handle.get_slice(key)
                found[key] = StoredTensor(held.get_dtype(), tuple(held.get_shape()))
    return found


def _file_of(folder: Path, tensor: str) -> Path | None:
    """The file of a folder's weights that a tensor is expected in."""
    if (folder / MODEL_WEIGHTS).is_file():
        return folder / MODEL_WEIGHTS
    shards = _shards(folder / INDEX) if (folder / INDEX).is_file() else {}
    return next((folder / name for name, held in shards.items() if tensor in held), None)


def _shards(index: Path) -> dict[str, set[str]]:
    """File name -> the tensors that an index says it holds."""
    shards: dict[str, set[str]] = {}
    try:
        for tensor, name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            shards.setdefault(name, set()).add(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot read {index} ({error!r:.200}): fetch or copy the folder again, whole"
        ) from error
    return shards


def _check_shard(file: Path, tensors: set[str] | None = None) -> None:
    """A safetensors file's header is whole, and its size is what the header says.

    tensors: those that must be in it.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            held = set(handle.keys())
    except Exception as error:  # safetensors raises its own type from Rust, and OSError
        raise UserError(
            f"{file} is not a whole safetensors file ({error}): fetch or copy it again"
        ) from error
    if not held:
        raise UserError(f"{file} holds no tensors: fetch or copy it again")
    if lacking := (tensors or set()) - held:
        raise UserError(
            f"{file} lacks {min(lacking)!r}, which {INDEX} says it holds: fetch or copy the folder "
            "again, whole"
        )


def _has_weights(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and any(
        (folder / n).is_file() for n in (MODEL_WEIGHTS, INDEX)
    )


def _within(folder: Path) -> UserError:
    return UserError(
        f"model.path = {str(folder)!r} holds an adapter ({ADAPTER}) next to its weights, which "
        "transformers would load too: merge it into them (PeftModel's merge_and_unload, then "
        "save_pretrained into a new folder), or move the adapter's files elsewhere"
    )


def _alone(folder: Path) -> UserError:
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = "its base model"
    return UserError(
        f"model.path = {str(folder)!r} is a PEFT adapter, not a model: give {base!s:.200}, or "
        "merge the adapter into it (PeftModel's merge_and_unload, then save_pretrained into a new "
        "folder)"
    )


def _gguf_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.gguf"))


def _only_gguf(path: str, file: Path) -> UserError:
    return UserError(
        f"model.path = {path!r} holds its weights as {file.name}, a GGUF file: give the file "
        f"itself, model.path = {str(file)!r}"
    )
