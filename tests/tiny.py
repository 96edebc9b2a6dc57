"""Miniatures: a client whose local training is a quadratic, and a whole setting to run.

The setting is a random Llama with a word tokenizer, three clients' files, and a recipe.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedsdr.algorithms.contract import Fitted, Round, Stage
from fedsdr.core import seeds
from fedsdr.core.adapters import (
    Adapter,
    Private,
    factor_of,
    plain_factors,
    rank_of,
    resize_rank,
    scale_product,
    select_tensors,
    unwrap_private,
)
from fedsdr.core.metrics import Mean

WORDS = "red green blue one two three cat dog bird sees likes near and the a is not".split()
CLIENTS = ("anna", "ben", "cleo")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] }}"
    "{{ ' <eos> ' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)

RECORDS = {"anna": 1, "ben": 3, "cleo": 6}
SHAPES = {
    "layers.0.x.lora_A.weight": (2, 3),
    "layers.0.x.lora_B.weight": (4, 2),
    "layers.1.y.lora_A.weight": (2, 4),
    "layers.1.y.lora_B.weight": (3, 2),
}


def random_adapter(*names: str | int, dtype: torch.dtype = torch.float64) -> Adapter:
    """An adapter of two layers and rank 2, a function of `names`."""
    draw = seeds.seeded_generator(0, *names)
    return {
        key: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
        for key, shape in SHAPES.items()
    }


def secret_round(number: int, seed: int, population: float = 1.0) -> Round:
    """A round whose secret is a function of its seed."""
    return Round(number, seed, population, secret=b"%d" % seed)


class ToyClient:
    """Local training by gradient descent on |theta + (1 - alone) company - goal|^2 / 2.

    The goal depends on the client and its targets, and the optimum moves with the company, as
    in the real thing. Pure: what a stage gives back depends on the stage alone. What a fresh
    adapter has is zero. `stages` remembers what was asked, `fits` what was answered.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.name, self.dtype = name, dtype
        self.stages: list[Stage] = []
        self.fits: list[Fitted] = []

    def __call__(self, stage: Stage) -> Fitted:
        self.stages.append(stage)
        self.fits.append(self.fit(stage))
        return self.fits[-1]

    def fit(self, stage: Stage) -> Fitted:
        zero = {key: torch.zeros(shape, dtype=self.dtype) for key, shape in SHAPES.items()}
        sent = plain_factors(stage.shared or {})
        r, s = (
            {**zero, **sent, **unwrap_private(stage.own)},
            {**zero, **unwrap_private(stage.private)},
        )
        s = scale_product(s, stage.fade) if stage.trains == "S" else s
        mine, other = (r, s) if stage.trains == "R" else (s, r)
        rank = rank_of(mine)
        other = resize_rank(other, rank)
        goal = random_adapter("goal", self.name, stage.targets, dtype=self.dtype)
        goal = resize_rank(goal, rank)
        after, gradient = dict(mine), {key: torch.zeros_like(t) for key, t in mine.items()}
        loss = Mean(0.0, 0.0)
        for _ in range(stage.schedule.steps):
            misses = {k: after[k] + (1 - stage.alone) * other[k] - goal[k] for k in after}
            for key in after:
                if stage.factors in ("both", factor_of(key)):
                    gradient[key] = gradient[key] + misses[key] / stage.schedule.steps
                    step = misses[key] + correction(stage, key, after[key])
                    after[key] = after[key] - stage.schedule.lr * step
            loss = loss.merge(Mean(sum(float((m**2).sum()) for m in misses.values()), 1))
        fitted = Fitted(RECORDS[self.name], loss, Private(mine), Private(after))
        if stage.trains == "S":
            return fitted
        return replace(
            fitted,
            shared=select_tensors(after, lambda key: key in sent),
            own=Private(select_tensors(after, lambda key: key not in sent)),
            gradient=select_tensors(gradient, lambda key: key in sent)
            if stage.mean_gradient
            else {},
        )


def correction(stage: Stage, key: str, value: torch.Tensor) -> torch.Tensor:
    """What a stage adds to the gradient of one tensor."""
    added = torch.zeros_like(value)
    if stage.pull is not None and key in stage.pull.towards:
        added = added + stage.pull.strength * (value - stage.pull.towards[key])
    if stage.shift is not None and key in stage.shift:
        added = added + stage.shift[key]
    return added


def model_folder(folder: Path, words: Sequence[str] = ()) -> Path:
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


def rows(client: int, count: int = 8) -> list[dict[str, str]]:
    """A client's records: its own words, drawn by index."""
    mine = WORDS[client:] + WORDS[:client]
    return [
        {
            "prompt": " ".join(mine[(i + j * j) % len(mine)] for j in range(3)),
            "response": " ".join(mine[(2 * i + j) % len(mine)] for j in range(2 + i % 3)),
        }
        for i in range(count)
    ]


def data_files(folder: Path, clients: Sequence[str] = CLIENTS) -> list[Path]:
    """A JSONL file a client, of unequal sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.jsonl" for name in clients]
    for k, path in enumerate(paths):
        write_rows(path, rows(k, 6 + 3 * k))
    return paths


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tables(model: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The tables of a recipe that takes a second to run; the clients are called as the files."""
    return {
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


def setting(folder: Path, **sections: Mapping[str, Any]) -> Path:
    """Model, data and recipe.toml in `folder`; `sections` are laid over the recipe's tables."""
    content = tables(model_folder(folder / "model"), data_files(folder / "data"))
    for name, changes in sections.items():
        content[name] = {**content.get(name, {}), **changes}
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    return path
