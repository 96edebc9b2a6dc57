"""Whatever a recipe or an override says: a recipe that can be written again, or a `UserError`."""

import os
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.recipe.load import flatten_tables, load_recipe, parse_recipe, to_toml
from support.fuzzing import JUNK, fuzzed, mutated, value_or_user_error
from support.repository import REPOSITORY

TEXTS = [path.read_bytes() for path in sorted(REPOSITORY.glob("recipes/*.toml"))]
LAB: dict[str, Any] = {"model": {"path": "lab"}}
KEYS = [
    *flatten_tables(parse_recipe(LAB).model_dump()),
    "data.sources", "options.fedprox.mu", "variants.mild.local.clip", "no.such.key", "model", "",
    "options." + ".".join("x" * 3000), "a..b", "ä", "a\0b", "\udc80",
]  # fmt: skip
TOML_TEXTS = st.sampled_from(
    [
        "0x" + "f" * 5000, "9" * 5000, "1e999999", "[" * 5000, "{x=" * 500, '"\\ud800"', "1_0",
        "2020-01-01", "07:32:00", "[1, 'a']", "{a = 1, a = 2}", "\udc80", "\0", "'''", "\n\n[x]",
        "${HOME}", "../../x", "a" * 5000, "hub:x", "lab", "nan", "-inf", "true",
    ]
)  # fmt: skip


def load(folder: Path, data: bytes, overrides: list[str]) -> None:
    path = folder / "recipe.toml"
    path.write_bytes(data)
    recipe = value_or_user_error(folder, lambda: load_recipe(path, overrides))
    if recipe is not None:  # a run writes it down, and reads it again when it goes on
        path.write_text(to_toml(recipe), encoding="utf-8")
        assert to_toml(load_recipe(path)) == to_toml(recipe)


LINES = st.sampled_from([f"{key} = {value}".encode() for key in KEYS[:9] for value in ("1", "{}")])
CHANGED = mutated(st.sampled_from(TEXTS) | LINES)


@fuzzed
@given(data=CHANGED | st.binary(max_size=60))
def test_recipes_that_were_changed(tmp_path, data):
    load(tmp_path, data, [])


@fuzzed
@given(sets=st.lists(st.tuples(st.sampled_from(KEYS), TOML_TEXTS | JUNK.map(str)), max_size=3))
def test_overrides_of_any_key_by_any_text(tmp_path, sets):
    load(tmp_path, tomli_w.dumps(LAB).encode(), [f"{key}={value}" for key, value in sets])


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """The tables of a recipe with up to four values put where they should not be."""
    found: dict[str, Any] = {"model": {"path": draw(st.sampled_from(["lab", "./m", "m"]))}}
    if draw(st.booleans()):
        found["data"] = {"sources": [{"path": "a.jsonl", draw(st.sampled_from(SOURCE)): "x"}]}
    for key in draw(st.lists(st.sampled_from(KEYS[:-6]), max_size=4)):
        *sections, last = key.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                break
        else:
            place[last] = draw(JUNK.filter(toml))
    return found


SOURCE = ["path", "client", "format", "encoding", "fields", "category", "empty", "limit", "more"]


def toml(value: Any) -> bool:
    """Whether TOML has such a value: it knows no null."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is not None and all(map(toml, inner))


@fuzzed
@given(content=tables())
def test_any_values_at_the_keys_of_a_recipe(tmp_path, content):
    load(tmp_path, tomli_w.dumps(content).encode(), [])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed." + ".".join("a" * 3000) + " = 1", "nested deeper than 20 levels"),
        ("seed = 0x" + "f" * 5000, "seed: a whole number beyond 64 bits"),
        ("lora.alpha = 0x" + "f" * 5000, "lora.alpha: a whole number beyond 64 bits"),
        ("options.fedprox.mu = [0xfffffffffffffffff]", "options.fedprox.mu: a whole number"),
    ],
)
def test_what_toml_can_say_and_no_recipe_can_hold(tmp_path, text, part):
    path = tmp_path / "recipe.toml"
    path.write_text(f"{text}\nmodel.path = 'lab'\n")
    with pytest.raises(ValueError, match=part) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 300 + len(os.fsencode(path))


def test_a_half_character_of_the_command_line_is_refused(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("model.path = 'lab'\n")
    with pytest.raises(ValueError, match=r"options.x.y = '\\udc80': not valid Unicode"):
        load_recipe(path, ["options.x.y=\udc80"])
