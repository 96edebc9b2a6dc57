"""Floating-point operations of a causal language model with LoRA on a frozen base.

A matrix product costs 2 operations for each weight and token, forward; its backward pass costs
as much again for the gradient of the input, and as much for that of the weight (Kaplan et al.
2020, arXiv 2001.08361, Sec. 2.1: 2 N forward, 6 N with the backward pass). A frozen weight needs no
gradient, so a base of N weights costs 4 N a token and not 6 N (6 N again with gradient
checkpointing, which repeats the forward pass); a trained adapter costs 6, a frozen
one 4. Attention over T tokens of width d costs 4 T d a layer and token forward, 12 T d with the
backward pass. Blocks below the lowest of `lora.layers` have no backward pass. What else is saved
below the first adapted layer, where nothing needs a gradient, is counted as if it were not.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedsdr.model.blocks import BlockChoice
from fedsdr.model.experts import expert_weights
from fedsdr.model.layers import linear_layers


@dataclass(frozen=True)
class Arithmetic:
    """matrix: N, weights of matrix products that a token passes through, the head among them.
    attention: the sum of attention widths d over the layers. adapter: one stream's weights.
    below, attention_below: the parts of `matrix` and `attention` without a backward pass."""

    matrix: int
    attention: int
    adapter: int
    below: int = 0
    attention_below: int = 0

    def forward(self, tokens: float, length: float) -> float:
        """Of `tokens` tokens of the base model in texts of `length` tokens."""
        return tokens * (2 * self.matrix + 4 * length * self.attention)

    def training(
        self, tokens: float, length: float, frozen: float = 0.0, again: bool = False
    ) -> float:
        """Of a step on `tokens` tokens; `frozen`: mean number of frozen streams;
        again: with gradient checkpointing."""
        passes = 3 if again else 2
        trained, attention = self.matrix - self.below, self.attention - self.attention_below
        base = 2 * self.matrix + (passes - 1) * 2 * trained
        scores = 4 * length * (self.attention + passes * attention)
        streams = (6 + 2 * again) * self.adapter + passes * 2 * frozen * self.adapter
        return tokens * (base + scores + streams)


def count_operations(model: Any, adapter: int, blocks: BlockChoice | None = None) -> Arithmetic:
    """Of an outline (`fedsdr.model.outline`), before it carries any stream.

    blocks: those that are adapted; None is all.
    """
    config = model.config.get_text_config()
    linear = linear_layers(model)
    matrix = sum(
        _weight(each).numel() for each in [*linear.values(), model.get_output_embeddings()]
    )
    matrix += _used_weights(model, config)
    heads = config.num_attention_heads
    width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention, first = width * config.num_hidden_layers, blocks.numbers[0] if blocks else 0
    if blocks is None or first == 0:
        return Arithmetic(matrix, attention, adapter)
    numbers = range(first)
    below = sum(
        _weight(each).numel() for path, each in linear.items() if blocks.block_of(path) in numbers
    )
    for number in numbers:
        below += _used_weights(model.get_submodule(f"{blocks.path}.{number}"), config)
    return Arithmetic(matrix, attention, adapter, below, width * first)


def _used_weights(part: nn.Module, config: Any) -> int:
    """Weights of the experts in a model or a block of it that a token passes through."""
    return int(sum(weight.numel() for weight in expert_weights(part)) * used_share(config))


def _weight(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def used_share(config: Any) -> float:
    """The share of the experts that a token passes through."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / experts if used and experts else 1.0


def decoding_steps(limits: list[int], batch: int) -> list[int]:
    """How many tokens each batch writes: as many as its longest row."""
    return [max(limits[i : i + batch]) for i in range(0, len(limits), batch)]
