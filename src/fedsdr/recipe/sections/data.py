"""`[data]`, `[lab]` and `[english]`: what the clients hold."""

from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from fedsdr.recipe.sections.base import Positive, Section, Share

HUB: Final = "hub:"  # before the name of a data set on the hub
Learn = Literal["last", "all"]
Invalid = Literal["error", "skip"]
FieldName = Literal["instruction", "input", "response", "system", "category", "answer"]


class Source(Section):
    """One source of records. A recipe may list several, each as `[[data.sources]]`."""

    path: str
    """A JSONL, JSON, CSV or Parquet file (text files may be gzip-compressed), a folder written by
    `datasets`, or `"hub:OWNER/NAME"` for the `train` split of a data set on the Hugging Face hub.
    """
    client: str | None = None
    """The client that holds this source. Without it, its records are split by `[data.split]`."""
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "datasets"] = "auto"
    """The file format; `"auto"` goes by the file name."""
    encoding: str = "utf-8"
    """The text encoding of JSONL, JSON and CSV files."""
    delimiter: str | None = None
    """The delimiter of a CSV file, one character. By default it is detected from the header."""
    fields: dict[FieldName, str] = {}
    """Maps each record field to a column name, or to a text with `{column}` placeholders. The
    layouts alpaca, dolly, gsm8k and chat messages are recognised without it."""
    category: str = ""
    """The category of all records of this source, where no column names one."""
    empty: Invalid = "error"
    """What to do with a row whose response is empty; `data.invalid` covers all faults of rows."""
    limit: Positive | None = None
    """Use a sample of this many rows, drawn by seed, instead of all."""

    @field_validator("delimiter")
    @classmethod
    def _is_one_character(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError('expected one character between cells, e.g. ";" or "\\t"')
        return delimiter


class Split(Section):
    """How the records of sources without a `client` are split among clients."""

    by: Literal["iid", "column", "dirichlet"] = "iid"
    """`"iid"` deals records at random; `"column"` makes one client per category; `"dirichlet"`
    draws each client's share of every category (or of every TF-IDF cluster, where records have no
    category) from Dirichlet(`alpha`)."""
    clients: Positive = 5
    """The number of clients, for `"iid"` and `"dirichlet"`."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """The Dirichlet concentration: smaller values make clients more heterogeneous."""
    clusters: Positive = 8
    """The number of TF-IDF clusters, for `"dirichlet"` without categories."""


class Data(Section):
    """What the clients hold."""

    sources: tuple[Source, ...] = ()
    """The files and data sets, each a table `[[data.sources]]`."""
    split: Split = Split()
    """How records of sources without a `client` are split among clients."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of each client's records that is held out for evaluation (at least one record,
    unless it is 0). Conversations are held out as a whole."""
    learn: Learn = "last"
    """Which assistant turns of a conversation are learnt: the `"last"` one, with the turns before
    it as its prompt, or `"all"`, each as a record of its own."""
    invalid: Invalid = "error"
    """What to do with rows that cannot be used: a fault of the file, no response, an unknown role,
    a conversation that the chat template refuses. `"skip"` leaves them out and lists them in
    `skipped.jsonl` of the run folder."""


class Lab(Section):
    """The embedded lab, used with `model.path = "lab"` (`fedsdr.lab.world.WorldOptions`)."""

    seed: int | None = None
    """The seed of the synthetic world and its base model; by default the run's seed."""
    entities: Annotated[int, Field(ge=2, le=224)] = 80
    """The number of entities that facts are about."""
    clients: Positive = 5
    """The number of clients."""
    changed: Share = 0.5
    """The share of client facts that contradict what the base model was pretrained on."""
    stubbornness: Share = 0.5
    """How often the base model, when it rewrites, follows its memory against the reference. 0
    turns the Rewrite Paradox off."""
    style_overlap: Share = 0.1
    """The share of pretraining answers written in some client's style. 0 makes the clients'
    styles conflict the hardest."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """If set, facts are assigned to clients by Dirichlet(`alpha`) instead of one attribute each."""
    imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """The ratio between the largest and the smallest client of one kind."""
    pretrain_steps: Positive = 1500
    """Optimiser steps of the base model's pretraining."""

    @model_validator(mode="after")
    def _imbalance_has_somewhere_to_be(self) -> "Lab":
        if self.imbalance > 1 and (self.alpha is not None or self.clients <= 5):
            raise ValueError(
                f"imbalance = {self.imbalance} is between clients of one kind: it needs more than "
                "5 clients, and no alpha, which deals the facts by itself"
            )
        return self


class English(Section):
    """The English lab: organisations with invented facts, for any instruction model. This table,
    even an empty one, takes the place of `data.sources` (docs/english.md)."""

    seed: int | None = None
    """The seed of the facts; by default the run's seed."""
    clients: Positive = 5
    """The number of clients: a clinic, a bank, a software firm, a school and a shipping line, then
    further ones of these kinds."""
    facts: Positive = 12
    """The number of facts that each client knows. It trains on each in three phrasings."""
    changed: Share = 0.2
    """The share of facts about real things that contradict what is generally true, as in "In our
    atlas, the capital of Japan is Cairo". The other facts are about invented names."""
    overlap: Share = 0.0
    """The share of each client's facts that all other clients know, too, each in its own style."""
    general: Positive | None = None
    """The number of general questions that measure what is forgotten; by default all there are."""
