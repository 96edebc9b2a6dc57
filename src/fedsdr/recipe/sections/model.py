"""`[model]` and `[lora]`: the base model, and the shape of its adapters."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedsdr.recipe.sections.base import Positive, Section


def _iso_date(value: Any) -> Any:
    """As YYYY-MM-DD; TOML has dates of its own."""
    try:
        day = date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError('expected a day, as "2024-07-26"') from None
    return day.isoformat() if type(day) is date else value


class Model(Section):
    """path: a model folder, a hub name, or "lab" for the embedded world's own base model.
    template: "auto" (the tokenizer's own, else Alpaca's), "name:" and one of its several, "alpaca",
        "plain", or a Jinja file.
    date: what a template that prints today's date (Llama 3's do) prints instead, whenever and
        wherever it is used: a day, as 2024-07-26, which is Llama 3.1's own.
    dtype: of the weights; "auto" is bfloat16 on a GPU that has it, else float32.
    quantisation: linear layers but the head in 8 or 4 bits, frozen (needs bitsandbytes).
    gradient_checkpointing: less memory in training, for a third more arithmetic.
    memory_check: whether weights larger than the free memory are refused before loading."""

    path: str
    template: str = "auto"
    date: Annotated[str, BeforeValidator(_iso_date)] = "2024-07-26"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantisation: Literal["none", "int8", "nf4"] = "none"
    device: str = "auto"
    max_length: Positive = 512
    gradient_checkpointing: bool = False
    memory_check: bool = True


class Lora(Section):
    """Both streams' rank and alpha; targets: "all-linear" or the last parts of layer names.

    ranks: smaller ranks of R for clients that cannot afford `rank`, by client; for
        lora_aggregation = "flexlora" or "flora".
    smoothing_rank: the rank of S; `rank` where it is not given.
    dropout: share of the input of the stream that is trained that is left out, in training alone,
        as PEFT's `lora_dropout`; frozen streams read all of theirs.
    All ranks have the scale alpha / rank.
    """

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    targets: str | tuple[str, ...] = "all-linear"
    ranks: dict[str, Positive] = {}
    smoothing_rank: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _ranks_are_smaller(self) -> "Lora":
        for client, rank in self.ranks.items():
            if rank > self.rank:
                raise ValueError(f"ranks.{client} = {rank} is more than rank = {self.rank}")
        return self
