"""`[data]` and `[lab]`: what the clients hold."""

from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from fedsdr.recipe.sections.base import Positive, Section, Share

HUB: Final = "hub:"  # before the name of a data set on the hub
FieldName = Literal["instruction", "input", "response", "system", "category", "answer"]


class Source(Section):
    """One file (JSONL, JSON, CSV, Parquet; texts packed by gzip or not) or `datasets` folder, or
    "hub:OWNER/NAME", the split "train" of a data set that `datasets.load_dataset` finds.

    client: the client that holds it; without one its records go through `[data.split]`.
    fields: record field -> column name, or a text with {column} in braces. Known layouts
        (alpaca, dolly, gsm8k, chat messages) need none.
    delimiter: between the cells of a CSV file, where its header does not tell.
    category: a domain for all its records, where no column names one.
    empty: what to do with a row whose response is empty: "error", or "skip" it.
    limit: take this many records, drawn by seed, instead of all.
    """

    path: str
    client: str | None = None
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "datasets"] = "auto"
    encoding: str = "utf-8"
    delimiter: str | None = None
    fields: dict[FieldName, str] = {}
    category: str = ""
    empty: Literal["error", "skip"] = "error"
    limit: Positive | None = None

    @field_validator("delimiter")
    @classmethod
    def _is_one_character(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError('expected one character between cells, e.g. ";" or "\\t"')
        return delimiter


class Split(Section):
    """How pooled records are dealt to clients.

    by: "iid"; "column", a client per category; "dirichlet", shares of each category drawn from
    Dirichlet(alpha), or of TF-IDF clusters where records have no category.
    """

    by: Literal["iid", "column", "dirichlet"] = "iid"
    clients: Positive = 5
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    clusters: Positive = 8


class Data(Section):
    """held_out: share of each client's records kept for judging (at least one record)."""

    sources: tuple[Source, ...] = ()
    split: Split = Split()
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Lab(Section):
    """The embedded world (docs of each knob: `fedsdr.lab.world.WorldOptions`).

    seed: of world and base model; the run's own seed where it is not given."""

    seed: int | None = None
    entities: Annotated[int, Field(ge=2, le=224)] = 80
    clients: Positive = 5
    changed: Share = 0.5
    stubbornness: Share = 0.5
    style_overlap: Share = 0.1
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    pretrain_steps: Positive = 1500

    @model_validator(mode="after")
    def _imbalance_has_somewhere_to_be(self) -> "Lab":
        if self.imbalance > 1 and (self.alpha is not None or self.clients <= 5):
            raise ValueError(
                f"imbalance = {self.imbalance} is between clients of one kind: it needs more than "
                "5 clients, and no alpha, which deals the facts by itself"
            )
        return self
