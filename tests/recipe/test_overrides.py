"""Overrides of a recipe's keys, and paths in it."""

from typing import Any

import pytest

from fedsdr.core.errors import UserError
from fedsdr.recipe.load import (
    load_recipe,
    recipe_differences,
    to_toml,
)

LAB: dict[str, Any] = {"model": {"path": "lab"}}


# Overrides


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seed=3", "seed", 3),
        (" seed = 3 ", "seed", 3),
        ("local.rectify_lr=1e-3", "local.rectify_lr", 1e-3),
        ("federation.algorithm=local", "federation.algorithm", "local"),  # shells eat quotes
        ('federation.algorithm="local"', "federation.algorithm", "local"),
        ('lora.targets=["a", "b"]', "lora.targets", ("a", "b")),
        ("lora.targets=q_proj", "lora.targets", "q_proj"),
        ("evaluate.personal=false", "evaluate.personal", False),
        (
            "distill.prompt={instruction} = {response}",
            "distill.prompt",
            "{instruction} = {response}",
        ),
        ("baselines=[]", "baselines", ()),
    ],
)
def test_overrides_from_the_command_line(write, text, key, value):
    base = {**LAB, "baselines": ["base"], "federation": {"targets": "raw"}}
    recipe = load_recipe(write(base), [text])
    found: Any = recipe
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert recipe_differences(recipe, load_recipe(write(base))) == [key]


def test_later_overrides_win(write):
    assert load_recipe(write(LAB), ["seed=1", "seed=2"]).seed == 2


def test_an_override_replaces_what_would_have_been_an_error(write):
    assert load_recipe(write({**LAB, "seed": "x"}), ["seed=1"]).seed == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed", ["--set 'seed'", "a.b=value"]),
        ("=3", ["--set '=3'"]),
        ("", ["--set ''"]),
        ("a..b=3", ["--set 'a..b=3'"]),
        (".seed=3", ["--set '.seed=3'"]),
        ("seed.x=3", ["'seed' is not a section"]),
        ("local.lr=3", ["local.lr: unknown key", "known keys: ", "rectify_lr"]),
        ("locl.rectify_lr=3", ["locl: unknown key", "known keys: ", "local"]),
        ("local=3", ["local = 3: "]),
        ("seed=abc", ["seed = 'abc': "]),
        ("seed=" + "9" * 5000, ["seed = '999"]),
        ("seed=" + "[" * 5000, ["seed = '[[["]),
    ],
)
def test_overrides_that_are_refused(write, text, parts):
    with pytest.raises(UserError) as caught:
        load_recipe(write({**LAB, "seed": 1}), [text])
    assert all(part in str(caught.value) for part in parts), caught.value
    assert len(str(caught.value)) < 600


# Paths


def source(data: str, **model: str) -> dict[str, Any]:
    return {"model": {"path": "org/name", **model}, "data": {"sources": [{"path": data}]}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.jsonl", "{folder}/a.jsonl"),
        ("./a.jsonl", "{folder}/a.jsonl"),
        ("../a.jsonl", "{parent}/a.jsonl"),
        ("b c/ä.jsonl", "{folder}/b c/ä.jsonl"),
        ("/data/a.jsonl", "/data/a.jsonl"),
        ("$FEDSDR_TEST/a.jsonl", "/somewhere/a.jsonl"),
        ("${FEDSDR_TEST}a.jsonl", "/somewherea.jsonl"),
        ("x/${FEDSDR_RELATIVE}/a", "{folder}/x/rel/a"),
        ("${FEDSDR_UNSET:-/other}/a", "/other/a"),
        ("${FEDSDR_TEST:-/other}/a", "/somewhere/a"),
        ("${FEDSDR_UNSET:-}a", "{folder}/a"),
        ("~/a.jsonl", "/home/someone/a.jsonl"),
    ],
)
def test_paths_are_taken_from_the_recipes_folder(write, monkeypatch, given, expected):
    monkeypatch.setenv("FEDSDR_TEST", "/somewhere")
    monkeypatch.setenv("FEDSDR_RELATIVE", "rel")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("FEDSDR_UNSET", raising=False)
    path = write(source(given))
    folder = path.parent.resolve()
    wanted = expected.format(folder=folder, parent=folder.parent)
    monkeypatch.chdir("/")
    assert load_recipe(path).data.sources[0].path == wanted
    if given[0] in "./~$" and given != "${FEDSDR_UNSET:-}a":  # which is the hub name "a"
        moved = source("a") | {"model": {"path": given}}
        assert load_recipe(write(moved)).model.path == wanted


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("path", "lab2"),
        ("path", "org/name"),
        ("path", "gpt2"),
        ("template", "auto"),
        ("template", "plain"),
    ],
)
def test_plain_names_are_not_paths(write, key, name):
    recipe = load_recipe(write(source("a", **{key: name})))
    assert getattr(recipe.model, key) == name


@pytest.mark.parametrize("given", ["chat.jinja", "./chat.jinja", "./chat"])
def test_templates_are_taken_from_the_recipes_folder(write, given):
    path = write(source("a", template=given))
    assert load_recipe(path).model.template == str((path.parent / given).resolve())


def test_resolved_paths_stay_as_they_are_in_another_folder(write, tmp_path):
    recipe = load_recipe(write(source("a.jsonl", path="./model", template="./t.jinja")))
    moved = tmp_path / "run" / "recipe.toml"
    moved.parent.mkdir()
    moved.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(moved) == recipe


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("$FEDSDR_UNSET/a", ["'$FEDSDR_UNSET/a'", "variable FEDSDR_UNSET", "not set"]),
        ("${FEDSDR_UNSET}/a", ["variable FEDSDR_UNSET", "not set"]),
        ("~no_such_person/a", ["'~no_such_person/a' is not a path"]),
        ("a\0b", ["is not a path", "null"]),
    ],
)
def test_paths_that_are_refused(write, monkeypatch, given, parts):
    monkeypatch.delenv("FEDSDR_UNSET", raising=False)
    for tables in (source(given), source("a", path=f"./{given}" if "\0" in given else given)):
        with pytest.raises(UserError) as caught:
            load_recipe(write(tables))
        assert all(part in str(caught.value) for part in parts), caught.value
