"""Models of real shapes with random weights: speed does not depend on what they have learnt."""

from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "SmolLM2-135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "Llama-2-7B": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    },
}  # fmt: skip


def random_model(shape: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A frozen Llama of that shape, drawn where and in the dtype in which it will be used."""
    config = LlamaConfig(max_position_embeddings=4096, **SHAPES[shape])
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.requires_grad_(False).eval()


def product_weights(model: Any) -> int:
    """Weights of matrix products: all matrices, but not a table where words are looked up alone."""
    whole = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    table = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    return int(whole - table)
