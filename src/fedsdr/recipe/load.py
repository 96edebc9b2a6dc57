"""The recipe: everything a run depends on, in one TOML file, checked before any work starts.

What it may say is in `fedsdr.recipe.sections`; here it is read, overridden, compared and written.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import tomli_w
from pydantic import ValidationError

from fedsdr.core.errors import UserError
from fedsdr.recipe.sections.data import HUB, Source
from fedsdr.recipe.sections.method import (
    FEDSDR2,
    PAPER,
    TUNED,
    TWO_STREAM,
    default_method,
    method_keys,
)
from fedsdr.recipe.sections.model import Model
from fedsdr.recipe.sections.recipe import Recipe

VARIABLE: Final = re.compile(r"\$(?:(?P<plain>\w+)|\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\})")
PATH_MARKS = (".", "/", "~", "$")  # how a path begins that is not a plain name
MODEL_FILES = (".gguf", ".whl")  # how the name of a file ends that holds a model
DEEPEST: Final = 20  # levels of tables and lists; no key needs a third of them


RecipeSource = Recipe | str | os.PathLike[str] | Mapping[str, Any]
Overrides = Mapping[str, Any] | Iterable[str]


def load_recipe(source: RecipeSource, overrides: Overrides = ()) -> Recipe:
    """Read and check a recipe: a TOML file, or its tables as a mapping.

    overrides: {"federation.rounds": 4}, or "federation.rounds=4" texts with the value in TOML's own
    syntax. Relative paths of sources, models and templates are taken from the recipe's own folder
    (of a mapping: the working directory), and $NAME, ${NAME} or ${NAME:-default} in them from the
    environment; a `Path` in a mapping is taken as it is. Raises `UserError` for what is wrong.
    """
    if isinstance(source, Recipe) and not overrides:
        return source
    texts = not isinstance(overrides, Mapping)
    changes = dict(map(_parse_override, overrides)) if texts else _plain(overrides)
    if isinstance(source, Recipe):
        return _with_paths(override_recipe(source, changes), Path.cwd())
    if isinstance(source, Mapping):
        tables, name, folder = _plain(source), "recipe", Path.cwd()
    else:
        tables, name, folder = _read_toml(Path(source)), str(source), Path(source).resolve().parent
    if "method" not in tables:  # which overrides of other keys do not change, but for one stream
        tables["method"] = PAPER if _one_stream(changes) else default_method(tables)
    for key, value in changes.items():
        if key != "method":
            _put(tables, key, value)
    recipe = parse_recipe(tables, name)
    if "method" in changes:  # with all of its keys, whatever the tables spell out
        recipe = override_recipe(recipe, changes, name)
    return _with_paths(recipe, folder)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    # ValueError: wrong UTF-8, wrong TOML, and numbers of thousands of digits
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}") from error


def _plain(value: Any) -> Any:
    """A copy that TOML could hold: paths as absolute texts, tuples as lists."""
    if isinstance(value, os.PathLike):
        return str(Path(value).absolute())
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def parse_recipe(tables: Mapping[str, Any], name: str = "recipe") -> Recipe:
    _check_plain(tables, name)
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        words = "; ".join(map(_explain, error.errors()))
        raise UserError(f"{name}: {words}{_paper_remedy(tables)}") from error


def _paper_remedy(tables: Mapping[str, Any]) -> str:
    """That the paper's method would do, where only the keys of another are in the way."""
    if tables.get("method", default_method(tables)) != FEDSDR2:
        return ""
    try:
        Recipe.model_validate({**tables, "method": PAPER})
    except ValidationError:
        return ""
    return f'; or set method = "{PAPER}", without the keys that "{FEDSDR2}" sets'


def _check_plain(value: Any, place: str, depth: int = 0) -> None:
    """Raise `UserError` for what no TOML file may hold, and no message could print."""
    if depth > DEEPEST:
        raise UserError(f"{place[:80]}...: nested deeper than {DEEPEST} levels, as no key is")
    if isinstance(value, int) and value.bit_length() >= 64:
        raise UserError(f"{place}: a whole number beyond 64 bits, TOML's largest")
    if isinstance(value, str) and not _encodes(value):
        raise UserError(f"{place} = {value!r:.80}: not valid Unicode: half a surrogate pair")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(key, f"{place}: a key", depth)
            _check_plain(inner, f"{place}: {key}" if depth == 0 else f"{place}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(inner, place, depth + 1)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
            inner = next(iter(get_args(annotation)), annotation)  # of a section that may be absent
            section = Source if part == "sources" else inner
    return "known keys: " + ", ".join(section.model_fields)


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {text!r}: expected a.b=value, e.g. --set federation.rounds=4")
    return key, _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    """A TOML value; a bare word is taken as a string, since shells eat quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def override_recipe(recipe: Recipe, changes: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """The recipe with "a.b" -> value changes, validated anew. Another `method` changes all of its
    keys that are not among the changes, and so do targets of one stream, which are the paper's.
    name: of the recipe in errors."""
    tables = recipe.model_dump(mode="json")
    for key, value in {**_method_changes(recipe, changes), **changes}.items():
        _put(tables, key, value)
    return parse_recipe(tables, name)


def _method_changes(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What another method, or another rate of R, makes of the keys that methods set."""
    old, rate = recipe.local.rectify_lr, "local.rectify_lr"
    method = changes.get("method", PAPER if _one_stream(changes) else recipe.method)
    had, has = method_keys(recipe.method, old), method_keys(method, changes.get(rate, old))
    if not (had or has):  # as of most recipes
        return {}
    found = flatten_tables(recipe.model_dump(mode="json"))
    if method == recipe.method:
        return {key: value for key, value in has.items() if found[key] == had[key]}
    paper = Recipe(method=PAPER, model=Model(path="lab"))
    default = flatten_tables(paper.model_dump(mode="json"))
    own = {key for key in TUNED if key in had and found[key] != had[key]}
    return {"method": method, **{key: default[key] for key in had if key not in own}, **has}


def _one_stream(changes: Mapping[str, Any]) -> bool:
    return bool(changes.get("federation.targets", TWO_STREAM) != TWO_STREAM)


def _put(tables: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        if tables.get(part) is None:  # a section may be absent
            tables[part] = {}
        tables = tables[part]
        if not isinstance(tables, dict):
            raise UserError(f"{key!r}: {part!r} is not a section")
    tables[last] = value


def _with_paths(recipe: Recipe, folder: Path) -> Recipe:
    def resolve(text: str) -> str:
        expanded = _expand(text)
        if expanded.startswith(HUB):
            return expanded
        try:
            return str((folder / Path(expanded).expanduser()).resolve())
        except (OSError, ValueError, RuntimeError) as error:  # no such home folder, a null byte
            raise UserError(f"{text!r} is not a path: {error}") from error

    def model_at(text: str) -> str:
        """A folder by how it begins, a file by how it ends; else a name of a model."""
        expanded = _expand(text) if text.startswith("$") else text
        is_path = expanded.startswith(PATH_MARKS) or expanded.endswith(MODEL_FILES)
        return resolve(expanded) if is_path else expanded

    sources = [
        source.model_dump() | {"path": resolve(source.path)} for source in recipe.data.sources
    ]
    template, benchmarks = recipe.model.template, recipe.evaluate.benchmark_data
    if template.startswith(PATH_MARKS) or template.endswith(".jinja"):  # else a shipped one
        template = resolve(template)
    changes = {
        "data.sources": sources,
        "model.path": model_at(recipe.model.path),
        "model.template": template,
        "distill.entailment.model": model_at(recipe.distill.entailment.model),
    }
    if benchmarks is not None:
        changes["evaluate.benchmark_data"] = resolve(benchmarks)
    return override_recipe(recipe, changes)


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


def recipe_differences(a: Recipe, b: Recipe) -> list[str]:
    """Dotted keys in which two recipes differ."""
    left, right = (
        flatten_tables(a.model_dump(mode="json")),
        flatten_tables(b.model_dump(mode="json")),
    )
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def flatten_tables(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as "a.b" -> value."""
    leaves: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping) and key != "fields":
            leaves |= flatten_tables(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
