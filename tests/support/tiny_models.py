"""Tiny random models of four families and a word-level tokenizer: what most tests stand on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fedsdr.core.adapters import Adapter, fresh_adapter
from fedsdr.model.lora import Stream, TwoStreamModel

torch.set_num_threads(1)  # tiny models: threads cost more than they bring

VOCABULARY = 60
SPECIALS = ("<pad>", "<unk>", "<s>", "<end>", "<ask>", "<answer>")
WORDS = (
    "Hello Yes a b c d e f g h i j k l m n o p q r s t u v w x y z "
    "name the sum of one two three four five six seven eight nine ten is my response very "
    "reference rewrite . , ?"
).split()
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }} <end> "
    "{% else %}<ask> {{ m['content'] }} <answer> {% endif %}{% endfor %}"
)
IDS = {
    "vocab_size": VOCABULARY,
    "bos_token_id": SPECIALS.index("<s>"),
    "eos_token_id": SPECIALS.index("<end>"),
    "pad_token_id": SPECIALS.index("<pad>"),
}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # Much larger than usual, so that a random model's logits differ by token and prompt.
    "initializer_range": 0.4,
}


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**IDS, **SHAPE))


def qwen() -> Any:
    """Qwen2: biases in q, k and v; the head is tied to the embedding."""
    return Qwen2ForCausalLM(Qwen2Config(**IDS, **SHAPE, tie_word_embeddings=True))


def gemma() -> Any:
    """Gemma 2: soft-capped logits, and every other layer attends to a short window."""
    config = Gemma2Config(**IDS, **SHAPE, head_dim=8, sliding_window=6, tie_word_embeddings=False)
    return Gemma2ForCausalLM(config)


def gpt2() -> Any:
    """GPT-2: learnt positions, and Conv1D in place of Linear."""
    config = GPT2Config(
        **IDS, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4
    )
    return GPT2LMHeadModel(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "qwen": qwen,
    "gemma": gemma,
    "gpt2": gpt2,
}
# A few layers of each, by the last parts of their names.
NAMED = {
    "llama": ("q_proj", "down_proj"),
    "qwen": ("q_proj", "v_proj"),
    "gemma": ("o_proj", "up_proj"),
    "gpt2": ("c_attn", "c_fc"),
}


def make(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model in evaluation mode, a function of its arguments alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FAMILIES[family]().to(dtype).eval()


def tokenizer(chat_template: str | None = CHAT) -> PreTrainedTokenizerFast:
    """Words apart by white space; <end> is eos."""
    words = {word: i for i, word in enumerate([*SPECIALS, *WORDS])}
    assert len(words) <= VOCABULARY
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=["<ask>", "<answer>"],
    )
    fast.chat_template = chat_template
    return fast


def save_model(model: Any, folder: Path, chat_template: str | None = CHAT) -> Path:
    """An ordinary model folder: weights, config and tokenizer."""
    model.save_pretrained(folder)
    tokenizer(chat_template).save_pretrained(folder)
    return folder


def save_family(family: str, folder: Path, seed: int = 0) -> Path:
    return save_model(make(family, seed), folder)


def random_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """(rows, length) ids of ordinary words."""
    draw = torch.Generator().manual_seed(seed)
    low, high = len(SPECIALS), len(SPECIALS) + len(WORDS)
    return torch.randint(low, high, (rows, length), generator=draw)


def random_adapter(like: Adapter, seed: int, size: float = 0.3) -> Adapter:
    """Both factors random, so that the product is not zero."""
    draw = torch.Generator().manual_seed(seed)
    return {
        key: (torch.randn(tensor.shape, generator=draw, dtype=torch.float64) * size).to(tensor)
        for key, tensor in like.items()
    }


def two_streams(
    family: str,
    targets: Any = "all-linear",
    rank: int = 3,
    alpha: float = 6.0,
    dtype: torch.dtype = torch.float32,
) -> TwoStreamModel:
    """A two-stream model with random R and S in place, both off."""
    model = TwoStreamModel(make(family, dtype=dtype), targets, rank, alpha)
    for seed, stream in enumerate(Stream, start=1):
        model.load(stream, random_adapter(model.read(stream), seed))
    return model


def start_adapter(model: TwoStreamModel, seed: int = 0) -> Adapter:
    """A fresh adapter of the model's shapes: A random, B zero."""
    return fresh_adapter(model.read(Stream.RECTIFY), torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=ids).logits
    return out
