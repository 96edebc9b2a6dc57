"""GGUF files (llama.cpp's format), converted into ordinary model folders.

transformers reads a GGUF file by itself, but in half a minute and more each time, and the model
that it gives counts as quantised, which can be neither saved nor merged with an adapter.
"""

import re
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.model.fit import check_size
from fedsdr.model.outline import outline_of, weight_bytes

GGUF_SUFFIX: Final = ".gguf"
GGUF_MAGIC: Final = b"GGUF"  # the first bytes of such a file
SPLIT_NAME: Final = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$")  # of one piece of several
NAME_INSIDE: Final = "model.gguf"


def is_gguf_path(path: Path) -> bool:
    """Whether a path is called a GGUF file, or is one by its first bytes."""
    return path.suffix == GGUF_SUFFIX or (path.is_file() and _begins_as_gguf(path))


def check_gguf_file(file: Path, name: str = "") -> None:
    """Raise `UserError` where a file is not there, is no GGUF file, or is one piece of several.

    name: what errors call it; by default its path.
    """
    if not file.is_file():
        raise UserError(f"model.path = {str(file)!r} is not there: give an existing GGUF file")
    if not _begins_as_gguf(file):
        raise UserError(
            f"{name or f'model.path = {str(file)!r}'} is not a GGUF file (its first bytes are not "
            f"{GGUF_MAGIC.decode()}): fetch or copy it again"
        )
    if SPLIT_NAME.search(file.name):
        raise UserError(
            f"model.path = {str(file)!r} is one piece of a split GGUF file: join the pieces with "
            "llama.cpp's `llama-gguf-split --merge`, and give the whole file"
        )


def check_gguf_package() -> None:
    """Raise `UserError` where the package that reads GGUF files is not installed."""
    if util.find_spec("gguf") is None:
        raise UserError(
            "model.path names a GGUF model, which needs the package gguf: "
            "pip install 'fedsdr[gguf]'"
        )


def convert_gguf(file: Path, folder: Path, name: str = "") -> None:
    """Write a GGUF file's model into a new folder: float32 safetensors, configuration, tokenizer.

    float32 holds every dequantised weight exactly; bfloat16 and float16 do not. The folder appears
    whole or not at all. Raises `UserError` for a file that is damaged or of an architecture that
    transformers does not read, and where memory or disk are too small. name: as in
    `check_gguf_file`.
    """
    check_gguf_file(file, name)
    name = name or str(file)
    # In a folder of its own: transformers would heed an adapter or a configuration next to it.
    with TemporaryDirectory() as alone:
        (Path(alone) / NAME_INSIDE).symlink_to(file.absolute())
        try:
            model, tokenizer = _read_gguf(Path(alone), name, folder)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # gguf and transformers raise what they like
            raise _unreadable(file, name, error) from error

        def write(temporary: Path) -> None:
            temporary.mkdir()
            tokenizer.save_pretrained(temporary)
            model.save_pretrained(temporary)

        files.write_folder(folder, write)


def _read_gguf(alone: Path, name: str, folder: Path) -> tuple[Any, Any]:
    """The model, no longer marked as quantised, and its tokenizer."""
    config = AutoConfig.from_pretrained(alone, gguf_file=NAME_INSIDE)
    size = weight_bytes(outline_of(config, name), torch.float32)
    check_size(size, name, torch.float32, "none", torch.device("cpu"))
    files.check_space(folder, size, "set FEDSDR_CACHE to a folder on another disk")
    tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=NAME_INSIDE)
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer in {name} has no end-of-sequence token (tokenizer.ggml.eos_token_id), "
            "so generation could not stop: give the model's original Hugging Face folder"
        )
    model, loading = AutoModelForCausalLM.from_pretrained(
        alone,
        gguf_file=NAME_INSIDE,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):  # transformers would draw them at random
        raise UserError(
            f"{name} lacks {len(missing)} of the model's tensors, {missing[0]!r} among them: give "
            "the model's original Hugging Face folder"
        )
    # What marks it as quantised; its weights are plain tensors by now.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    return model, tokenizer


def _unreadable(file: Path, name: str, error: Exception) -> UserError:
    """Why transformers failed: a damaged file, or a model that it does not read."""
    from gguf import GGUFReader

    try:
        GGUFReader(file)
    except Exception:  # numpy's, of any kind, in words about arrays
        size = file.stat().st_size
        return UserError(
            f"{name} is not a whole GGUF file (it ends after {size:,} bytes, or is damaged): fetch "
            "or copy it again"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return UserError(
        f"transformers cannot read {name} ({reason}): give the model's original Hugging Face folder"
    )


def _begins_as_gguf(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(len(GGUF_MAGIC)) == GGUF_MAGIC
