"""The documentation as a site: its navigation is complete, its reference leaves nothing out."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import click
import pytest
import typer
import yaml
from pydantic import BaseModel

import docs_hooks
import docstring_fields
import reference_pages
from fedsdr.algorithms.table import TABLES
from fedsdr.cli.main import app
from fedsdr.core import layout
from fedsdr.recipe.sections.recipe import Recipe
from support.repository import REPOSITORY

CONFIGURATION = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))


def entries(items: list[Any]) -> Iterator[str]:
    """The pages of a navigation, in order."""
    for item in items:
        for value in item.values():
            if isinstance(value, str):
                yield value
            else:
                yield from entries(value)


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    """Dotted name and description of every key of a recipe that is not a table of its own."""
    for name, field in section.model_fields.items():
        inner = [
            each
            for each in (field.annotation, *get_args(field.annotation))
            if isinstance(each, type) and issubclass(each, BaseModel)
        ]
        if inner:
            yield from keys(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name, field.description


def commands(command: click.Command, path: str = "fedsdr") -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, f"{path} {name}")
    else:
        yield path, command


def test_every_page_is_in_the_navigation_once():
    navigation = CONFIGURATION["nav"]
    docs_hooks.fill_modules(navigation)
    listed = list(entries(navigation))
    written = {
        path.relative_to(REPOSITORY / "docs").as_posix()
        for path in (REPOSITORY / "docs").rglob("*.md")
    }
    assert sorted(listed) == sorted(written | set(docs_hooks.generated_pages()))


def test_a_site_that_is_opened_offline_asks_no_server():
    assert CONFIGURATION["theme"]["font"] is False
    assert {"search", "offline"} <= {
        each for each in CONFIGURATION["plugins"] if isinstance(each, str)
    }
    [shim] = CONFIGURATION["extra"]["polyfills"]
    assert (REPOSITORY / "docs" / shim).is_file()
    assert "http" not in (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_key_of_a_recipe_is_on_its_page_with_its_meaning():
    page = reference_pages.recipe_page()
    found = dict(keys(Recipe))
    assert {"seed", "data.sources.delimiter", "distill.oracle.false_accept"} <= set(found)
    assert [key for key, meaning in found.items() if not meaning] == []
    missing = [key for key in found if page.count(f"](#{key}){{ #{key} }}") != 1]
    assert missing == []


def test_every_option_of_a_choice_is_on_the_page_with_its_meaning():
    page = reference_pages.recipe_page()
    found = {
        f"options.{name}.{key}": meaning
        for rows in TABLES.values()
        for name, row in rows.items()
        for key, meaning in keys(row.options)
    }
    assert "options.krum.keep" in found
    assert [key for key, meaning in found.items() if not meaning] == []
    assert [key for key in found if f"{{ #{key} }}" not in page] == []
    assert [name for rows in TABLES.values() for name in rows if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize(
    ("key", "values", "default"),
    [
        ("model.path", "string", "required"),
        ("federation.robust", "`none` or `clipping`", '`"none"`'),
        ("privacy.delta", "number > 0, < 1", "`1e-05`"),
        ("local.cohort", 'integer > 0 or `"auto"`', "`1`"),
        ("lora.ranks", "table of integer > 0", "`{}`"),
        ("data.sources.limit", "integer > 0", "unset"),
        ("distill.checks", "list of string", '`["empty"'),
    ],
)
def test_a_key_is_shown_with_its_values_and_default(key, values, default):
    [line] = [row for row in reference_pages.recipe_page().splitlines() if f"{{ #{key} }}" in row]
    _, _, shown, given, meaning, _ = line.split("|")
    assert shown.strip().startswith(values)
    assert given.strip().startswith(default)
    assert meaning.strip()


def test_every_command_is_on_its_page_with_all_its_options():
    sections = dict(
        re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", reference_pages.commands_page(), re.M | re.S)
    )
    found = dict(commands(typer.main.get_command(app)))
    assert set(sections) == set(found)
    for name, command in found.items():
        options = [each for parameter in command.params for each in parameter.opts if "-" in each]
        assert [each for each in options if each not in sections[name]] == []


def test_code_that_a_page_names_is_linked_where_it_is_public():
    linked = docs_hooks.link_code(
        "`core/seeds.py`, `core/seeds.py: seeded_generator, _no` and `x.py`"
    )
    assert linked == (
        "[`core/seeds.py`][fedsdr.core.seeds], [`core/seeds.py`][fedsdr.core.seeds]: "
        "[`seeded_generator`][fedsdr.core.seeds.seeded_generator], `_no` and `x.py`"
    )


def test_fields_of_a_docstring_become_a_list():
    text = "One line.\n\nrank, alpha: of both.\nnote: is prose.\n[A] [B] is a matrix."
    shown = docstring_fields.list_fields(text, {"rank", "alpha"})
    assert shown == (
        "One line.\n\n\n* **rank, alpha**: of both.\nnote: is prose.\n[A] \\[B] is a matrix."
    )


def test_the_figure_of_the_packages_shows_every_one():
    drawing = (REPOSITORY / "docs" / "figures" / "rooms.svg").read_text(encoding="utf-8")
    shown = re.findall(r'<text class="bold"[^>]*>([^<]*)<', drawing)
    assert sorted(name for text in shown for name in text.split(", ")) == reference_pages.rooms()


def test_every_file_of_a_run_folder_is_on_its_page():
    page = (REPOSITORY / "docs" / "run-folder.md").read_text(encoding="utf-8")
    names = [value for name, value in vars(layout).items() if name.isupper()]
    assert "metrics.jsonl" in names
    assert [name for name in names if f"`{name}" not in page] == []
