"""Reference pages of the documentation, generated from the program: every key, command and module.

`docs_hooks.py` adds them to the site. Each function returns Markdown.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import typer
from pydantic import BaseModel

import fedsdr
from fedsdr.algorithms.table import TABLES, AlgorithmRow
from fedsdr.cli.main import app
from fedsdr.recipe.sections.method import ADDED, SLOWER
from fedsdr.recipe.sections.recipe import Recipe

PACKAGE: Final = Path(fedsdr.__file__).parent
Schema = Mapping[str, Any]
# What the default method has instead.
BY_METHOD: Final = {
    **{key: f"`{json.dumps(value)}`" for key, value in ADDED.items()},
    "local.smooth_lr": f"`rectify_lr` / {SLOWER}",
}

RECIPE_INTRODUCTION: Final = """# Recipe keys

A run is one TOML file. This page lists every key of it with the values it takes, its default and
its meaning. Unknown keys are errors. Any key can be set on the command line, as in
`--set federation.rounds=4`.

"Unset" means that the key has no value unless you give one.
"""
OPTIONS_INTRODUCTION: Final = """## Choices and their options

The values of the keys that choose an algorithm. The options of a choice are keys of
`[options.NAME]`, for example `[options.fedprox]`. [Algorithms](algorithms.md) describes them.
"""
COMMANDS_INTRODUCTION: Final = """# Commands

Every command of `fedsdr`, generated from its argument parser. The exit status is 0 when the work
is done, 2 for a mistake in the input (one line says what to change), 130 when interrupted, and 1
for a defect of the program.
"""


def recipe_page() -> str:
    """Every key of a recipe: `Recipe`, its sections, and the options of every choice."""
    schema = Recipe.model_json_schema()
    parts = [RECIPE_INTRODUCTION, _section("Top level", "", schema, schema["$defs"])]
    parts += [
        _section(f"`[{name}]`", name, section, schema["$defs"])
        for name, section in _sections("", schema, schema["$defs"])
    ]
    parts.append(OPTIONS_INTRODUCTION)
    parts += [_choices(key, rows) for key, rows in TABLES.items()]
    return "\n".join(parts)


def _sections(prefix: str, schema: Schema, definitions: Schema) -> Iterator[tuple[str, Schema]]:
    """Every table below a section, with its dotted name, in the order of the keys."""
    for key, value in schema["properties"].items():
        if reference := _reference(value):
            section = definitions[reference]
            yield f"{prefix}{key}", section
            yield from _sections(f"{prefix}{key}.", section, definitions)


def _reference(value: Schema) -> str | None:
    """The definition that a key's value is, may be, or is a list of."""
    for each in (value, value.get("items", {}), *value.get("anyOf", ())):
        if reference := each.get("$ref"):
            return str(reference.rpartition("/")[2])
    return None


def _section(title: str, name: str, schema: Schema, definitions: Schema) -> str:
    rows = [
        _key_row(f"{name}.{key}".lstrip("."), key, value, key in schema.get("required", ()))
        for key, value in schema["properties"].items()
        if not _reference(value)
    ]
    description = schema.get("description", "")
    if not rows:
        return f"## {title}\n\n{description}\n"
    header = "| key | values | default | meaning |\n| --- | --- | --- | --- |\n"
    return f"## {title}\n\n{description}\n\n{header}" + "\n".join(rows) + "\n"


def _key_row(path: str, key: str, value: Schema, required: bool) -> str:
    default = "required" if required else _literal(value.get("default"))
    if path in BY_METHOD:
        default += f" (`fedsdr2`: {BY_METHOD[path]})"
    allowed = (
        " or ".join(f"`{name}`" for name in TABLES[path]) if path in TABLES else _values(value)
    )
    return f"| {_anchored(key, path)} | {allowed} | {default} | {_cell(value['description'])} |"


def _anchored(key: str, path: str) -> str:
    """A key that can be linked to by its dotted path."""
    return f"[`{key}`](#{path}){{ #{path} }}"


def _literal(default: Any) -> str:
    return "unset" if default is None else f"`{_cell(json.dumps(default))}`"


def _cell(text: str) -> str:
    """A description in a cell of a table; files of docs/ that it names are links."""
    line = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", line)


def _values(value: Schema) -> str:
    """The values that a key takes, in words: "integer > 0", "a list of strings"."""
    if "anyOf" in value:
        return " or ".join(_values(each) for each in value["anyOf"] if each.get("type") != "null")
    if "enum" in value:
        return " or ".join(f'`"{each}"`' for each in value["enum"])
    if "const" in value:
        return f'`"{value["const"]}"`'
    if value["type"] == "array":
        return f"list of {_values(value['items'])}"
    if value["type"] == "object":
        return _table(value)
    return value["type"] + _bounds(value)


def _table(value: Schema) -> str:
    keys = value.get("propertyNames", {}).get("enum", ())
    names = f" (keys: {', '.join(f'`{key}`' for key in keys)})" if keys else ""
    inner = value.get("additionalProperties")
    simple = isinstance(inner, dict) and inner.get("type") != "object"
    return "table" + (f" of {_values(inner)}" if simple else "") + names


def _bounds(value: Schema) -> str:
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {value[name]:g}" for name, sign in limits.items() if name in value]
    return f" {', '.join(found)}" if found else ""


def _choices(key: str, rows: Mapping[str, AlgorithmRow]) -> str:
    """The rows of one table of algorithms, and the options of those that have some."""
    lines = [f"### `{key}`\n", "| name | what it does | source |\n| --- | --- | --- |"]
    lines += [f"| `{name}` | {_cell(row.line)} | {row.citation} |" for name, row in rows.items()]
    lines.append("")
    lines += [_options(name, row.options) for name, row in rows.items() if row.options.model_fields]
    return "\n".join(lines)


def _options(name: str, options: type[BaseModel]) -> str:
    schema = options.model_json_schema()
    return _section(f"`[options.{name}]`", f"options.{name}", schema, {}).replace("## ", "#### ", 1)


def commands_page() -> str:
    """Every command, its arguments and its options."""
    return "\n".join([COMMANDS_INTRODUCTION, *_commands(typer.main.get_command(app), "fedsdr")])


def _commands(command: click.Command, path: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _commands(each, f"{path} {name}")
    else:
        yield _command(command, path)


def _command(command: click.Command, path: str) -> str:
    usage = command.get_usage(click.Context(command, info_name=path)).removeprefix("Usage: ")
    text = f"## {path}\n\n{command.help}\n\n```\n{usage}\n```\n"
    if not command.params:
        return text
    rows = [_parameter(each) for each in command.params]
    header = "\n| argument or option | default | meaning |\n| --- | --- | --- |\n"
    return text + header + "\n".join(rows) + "\n"


def _parameter(parameter: click.Parameter) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    flag = isinstance(parameter, click.Option) and parameter.is_flag
    if isinstance(parameter, click.Option):
        value = "" if flag else f" {parameter.type.name.upper().replace(' ', '-')}"
        name = " / ".join(f"`{each}{value}`" for each in names)
    else:
        name = f"`{parameter.name.upper() if parameter.name else ''}`"
    default = "" if flag or parameter.default in (None, "", ()) else f"`{parameter.default}`"
    shown = "required" if parameter.required else default
    return f"| {name} | {shown} | {_cell(getattr(parameter, 'help', '') or '')} |"


def rooms() -> list[str]:
    """The packages of fedsdr, by name."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def room_page(room: str) -> str:
    """A page of the API: the modules of a room, which mkdocstrings fills in."""
    paths = sorted((PACKAGE / room).rglob("*.py"), key=lambda path: path.with_suffix("").parts)
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in paths
        if path.name != "__init__.py"
    ]
    introduction = f"::: fedsdr.{room}\n    options:\n      members: false\n\n"
    return introduction + "".join(f"::: {module}\n\n" for module in modules)
