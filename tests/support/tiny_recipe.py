"""A recipe that takes a second to run, with all that it names.

A random Llama with a word tokenizer, a data file for each of three clients, and recipe.toml.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from support.toy_clients import CLIENTS

WORDS = "red green blue one two three cat dog bird sees likes near and the a is not".split()
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] }}"
    "{{ ' <eos> ' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def write_model(folder: Path, words: Sequence[str] = ()) -> Path:
    """A Hugging Face folder: two layers of 32 channels, random weights, one token a word."""
    tokenizer = word_tokenizer([*WORDS, *words])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    state = torch.get_rng_state()
    torch.manual_seed(5)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_rng_state(state)
    tokenizer.save_pretrained(folder)
    return folder


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<unk>", "<eos>"]
    listed = [*special, "<system>", "<user>", "<assistant>", *words]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(listed)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def client_rows(client: int, count: int = 8) -> list[dict[str, str]]:
    """A client's records: its own words, drawn by index."""
    mine = WORDS[client:] + WORDS[:client]
    return [
        {
            "prompt": " ".join(mine[(i + j * j) % len(mine)] for j in range(3)),
            "response": " ".join(mine[(2 * i + j) % len(mine)] for j in range(2 + i % 3)),
        }
        for i in range(count)
    ]


def write_data_files(folder: Path, clients: Sequence[str] = CLIENTS) -> list[Path]:
    """A JSONL file a client, of unequal sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.jsonl" for name in clients]
    for k, path in enumerate(paths):
        write_rows(path, client_rows(k, 6 + 3 * k))
    return paths


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe_tables(model: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The tables of a recipe that takes a second to run; the clients are called as the files."""
    return {
        "method": "paper",
        "model": {"path": str(model), "max_length": 64, "device": "cpu"},
        "lora": {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "down_proj"]},
        "data": {
            "sources": [{"path": str(path), "client": path.stem} for path in files],
            "held_out": 0.2,
        },
        "distill": {
            "prompt": "{instruction} and {response} is",
            "min_tokens": 4,
            "batch_size": 4,
            "checks": [],
        },
        "federation": {"rounds": 3, "targets": "two_stream"},
        "local": {
            "batch_size": 3,
            "rectify_steps": 2,
            "smooth_steps": 2,
            "rectify_lr": 0.02,
            "smooth_lr": 0.02,
        },
        "evaluate": {"every": 2},
        "tracking": {"backends": ["none"]},
    }


def write_recipe(folder: Path, **sections: Mapping[str, Any]) -> Path:
    """Model, data and recipe.toml in `folder`; `sections` are laid over the recipe's tables."""
    content = recipe_tables(write_model(folder / "model"), write_data_files(folder / "data"))
    for name, changes in sections.items():
        content[name] = {**content.get(name, {}), **changes}
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    return path
