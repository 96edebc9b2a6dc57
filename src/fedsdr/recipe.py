"""The recipe: everything a run depends on, in one TOML file, checked before any work starts.

Each section is one class; each default is stated here and nowhere else. Those of `[local]` were
chosen by measurement on the lab (docs/findings.md).
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedsdr.errors import UserError

Positive = Annotated[int, Field(gt=0)]
LearningRate = Annotated[float, Field(gt=0, lt=10, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


VARIABLE: Final = re.compile(r"\$(?:(?P<plain>\w+)|\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\})")
VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
PATH_MARKS = (".", "/", "~", "$")  # how a path begins that is not a plain name
FieldName = Literal["instruction", "input", "response", "system", "category", "answer"]


class Section(BaseModel):
    """Unknown keys are errors: a misspelt option must not be silently a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """path: a model folder, a hub name, or "lab" for the embedded world's own base model.
    template: "auto" (the tokenizer's own, else Alpaca's), "alpaca", "plain", or a Jinja file."""

    path: str
    template: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    max_length: Positive = 512


class Lora(Section):
    """Both streams' rank and alpha; targets: "all-linear" or the last parts of layer names."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    targets: str | tuple[str, ...] = "all-linear"


class Source(Section):
    """One file (JSONL, JSON, CSV) or `datasets` folder.

    client: the client that holds it; without one its records go through `[data.split]`.
    fields: record field -> column name, or a text with {column} in braces. Known layouts
        (alpaca, dolly, gsm8k, chat messages) need none.
    category: a domain for all its records, where no column names one.
    empty: what to do with a row whose response is empty: "error", or "skip" it.
    limit: take this many records, drawn by seed, instead of all.
    """

    path: str
    client: str | None = None
    format: Literal["auto", "jsonl", "json", "csv", "datasets"] = "auto"
    encoding: str = "utf-8"
    fields: dict[FieldName, str] = {}
    category: str = ""
    empty: Literal["error", "skip"] = "error"
    limit: Positive | None = None


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
    pretrain_steps: Positive = 1500


class Distill(Section):
    """Self-distillation: how clients rewrite, and the gate a rewrite must pass.

    prompt: with {instruction} and {response}, the user turn of the rewriting request.
    temperature: 0 is greedy; retry_temperature is that of every attempt after the first.
    max_ratio, min_tokens: a rewrite may have at most
        max(min_tokens, max_ratio x tokens of the reference) tokens.
    checks: names in `fedsdr.distill.checks.CHECKS`, in order.
    attempts: tries for each record, each with a fresh seed, before the raw response is kept.
    """

    prompt: str = (
        "{instruction}\n\nHere is a reference answer:\n{response}\n\n"
        "Guided by the reference answer, write your own response to the instruction. "
        "Do not mention the reference answer."
    )
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    retry_temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    max_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    min_tokens: Positive = 32
    checks: tuple[str, ...] = ("empty", "truncated", "repetition", "meta_talk")
    attempts: Positive = 1
    batch_size: Positive = 16

    @model_validator(mode="after")
    def _prompt_has_places(self) -> "Distill":
        for place in ("{instruction}", "{response}"):
            if place not in self.prompt:
                raise ValueError(f"prompt must contain {place}")
        return self


class Federation(Section):
    """algorithm: a name in `fedsdr.algorithms.table.ALGORITHMS`.
    targets: what clients learn from; "two_stream" is FedSDR.
    participation: share of the clients that take part in a round (at least one).
    pooled: centralised training, as if one client held all data (a baseline)."""

    algorithm: str = "fedavg"
    targets: Literal["raw", "distilled", "two_stream"] = "two_stream"
    rounds: Annotated[int, Field(ge=0)] = 20
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    pooled: bool = False

    @model_validator(mode="after")
    def _pooled_is_raw(self) -> "Federation":
        if self.pooled and self.targets != "raw":
            raise ValueError(f'pooled = true needs targets = "raw", not "{self.targets}"')
        return self


class Local(Section):
    """Local training. The rectify stage is the one that trains R: all there is in methods of
    one stream. smoothing_state, smoothing_context and rectify_alone are FedSDR's open choices
    (`fedsdr.algorithms.two_stream.Smoothing`)."""

    batch_size: Positive = 16
    rectify_steps: Positive = 10
    rectify_lr: LearningRate = 3e-4
    smooth_steps: Positive = 10
    smooth_lr: LearningRate = 3e-4
    smoothing_state: Literal["keep", "reset"] = "reset"
    smoothing_context: Literal["joint", "base"] = "base"
    rectify_alone: Share = 0.5
    clip: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Evaluate(Section):
    """every: rounds between evaluations (the last round always has one; 0 means only that).
    personal: whether clients' own models are evaluated too, at the end.
    limit: at most this many held-out records of a client."""

    every: Annotated[int, Field(ge=0)] = 5
    personal: bool = True
    limit: Positive = 200


class Recipe(Section):
    """A whole run. `baselines` are methods that run before the recipe's own, each into
    `baselines/NAME` of the run folder: names of `fedsdr.methods.METHODS`, or of `variants`, which
    are the recipe's own method with some keys changed."""

    seed: int = 0
    baselines: tuple[str, ...] = ()
    variants: dict[VariantName, dict[str, Any]] = {}
    model: Model
    lora: Lora = Lora()
    data: Data = Data()
    lab: Lab = Lab()
    distill: Distill = Distill()
    federation: Federation = Federation()
    local: Local = Local()
    evaluate: Evaluate = Evaluate()

    @property
    def uses_lab(self) -> bool:
        return self.model.path == "lab"

    @model_validator(mode="after")
    def _data_from_somewhere(self) -> "Recipe":
        if self.uses_lab and self.data.sources:
            raise ValueError('model.path = "lab" brings its own data: remove data.sources')
        if not self.uses_lab and not self.data.sources:
            raise ValueError("no data: add [[data.sources]] with a path")
        return self


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a TOML recipe; `overrides` are "a.b=value" texts, the value in TOML's own syntax.

    Relative paths of sources, models and templates are taken from the recipe's own folder, and
    $NAME, ${NAME} or ${NAME:-default} in them from the environment.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    # ValueError: wrong UTF-8, wrong TOML, and numbers of thousands of digits
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}") from error
    for override in overrides:
        _set(tables, override)
    recipe = parse_recipe(tables, str(path))
    return _with_paths(recipe, path.resolve().parent)


def parse_recipe(tables: Mapping[str, Any], name: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        raise UserError(f"{name}: " + "; ".join(map(_explain, error.errors()))) from error


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key ({_known(error['loc'])})"
    given = "" if error["type"] == "missing" else f" = {error['input']!r:.80}"
    if isinstance(error["input"], Mapping):
        given = ""
    return f"{place}{given}: {error['msg'].removeprefix('Value error, ')}"


def _known(location: tuple[str | int, ...]) -> str:
    """The keys that the section of an unknown key has."""
    section: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            section = Source if part == "sources" else annotation
    return "known keys: " + ", ".join(section.model_fields)


def _set(tables: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {override!r}: expected a.b=value, e.g. --set federation.rounds=4")
    _put(tables, key, _toml_value(value.strip()))


def _toml_value(text: str) -> Any:
    """A TOML value; a bare word is taken as a string, since shells eat quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with "a.b" -> value changes, validated anew."""
    tables = recipe.model_dump(mode="json")
    for key, value in changes.items():
        _put(tables, key, value)
    return parse_recipe(tables)


def _put(tables: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        tables = tables.setdefault(part, {})
        if not isinstance(tables, dict):
            raise UserError(f"{key!r}: {part!r} is not a section")
    tables[last] = value


def _with_paths(recipe: Recipe, folder: Path) -> Recipe:
    def resolve(text: str) -> str:
        expanded = _expand(text)
        try:
            return str((folder / Path(expanded).expanduser()).resolve())
        except (OSError, ValueError, RuntimeError) as error:  # no such home folder, a null byte
            raise UserError(f"{text!r} is not a path: {error}") from error

    sources = [
        source.model_dump() | {"path": resolve(source.path)} for source in recipe.data.sources
    ]
    model, template = recipe.model.path, recipe.model.template
    if model.startswith(PATH_MARKS):  # a folder; anything else is a hub name or "lab"
        model = resolve(model)
    if template.startswith(PATH_MARKS) or template.endswith(".jinja"):  # else a shipped one
        template = resolve(template)
    changes = {"data.sources": sources, "model.path": model, "model.template": template}
    return override(recipe, changes)


def _expand(text: str) -> str:
    """Environment variables as a shell would put them in; one that is not set is an error."""

    def value(match: re.Match[str]) -> str:
        name, default = match["plain"] or match["braced"], match["default"]
        found = os.environ.get(name) or default
        if found is None:
            raise UserError(f"{text!r} names the environment variable {name}, which is not set")
        return found

    return VARIABLE.sub(value, text)


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML, defaults included: running it again repeats the run."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Dotted keys in which two recipes differ."""
    left, right = flat(a.model_dump(mode="json")), flat(b.model_dump(mode="json"))
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as "a.b" -> value."""
    leaves: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping) and key != "fields":
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
