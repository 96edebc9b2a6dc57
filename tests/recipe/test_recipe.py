"""Recipes: defaults, round trips, what is refused, differences, methods by name."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsdr.core.errors import UserError
from fedsdr.recipe.load import (
    load_recipe,
    override_recipe,
    parse_recipe,
    recipe_differences,
    to_toml,
)
from fedsdr.recipe.methods import NAMED_METHODS, named_recipe, own_name
from fedsdr.recipe.sections.local import Local
from fedsdr.recipe.sections.recipe import Recipe
from support.repository import REPOSITORY

LAB: dict[str, Any] = {"model": {"path": "lab"}}


@pytest.mark.parametrize(("mode", "most"), [("central", 1.9), ("central", 0.1)])
def test_a_norm_limit_refuses_nothing_that_is_clipped_under_central_privacy(mode, most):
    told = {"privacy": {"mode": mode, "clip": 1.0}, "deployment": {"max_norm": most}}
    with pytest.raises(UserError, match="set max_norm to twice the clip or more"):
        parse_recipe({**LAB, **told})
    parse_recipe({**LAB, **told, "deployment": {"max_norm": 2.0}})
    parse_recipe({**LAB, **told, "privacy": {"mode": "local", "clip": 1.0}})


def message(tables: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe(tables, "r.toml")
    assert str(caught.value).startswith("r.toml: ")
    return str(caught.value)


# Round trips


FULL: dict[str, Any] = {
    "seed": 7,
    "baselines": ["base", "mild"],
    "variants": {"mild": {"local": {"smooth_steps": 3}, "federation": {"rounds": 4}}},
    "model": {"path": "org/name", "template": "plain", "dtype": "bfloat16", "max_length": 9},
    "lora": {"rank": 4, "alpha": 0.1, "targets": ["q_proj", "v_proj"]},
    "data": {
        "sources": [
            {"path": "/a.jsonl", "client": "a", "fields": {"instruction": "q {x}"}, "limit": 3},
            {"path": "/b.csv", "encoding": "latin-1", "category": "b", "empty": "skip"},
        ],
        "split": {"by": "dirichlet", "clients": 3, "alpha": 1e-3},
    },
    "lab": {"seed": 4},
    "distill": {"prompt": 'say "{instruction}"\n{response}\tö', "checks": [], "temperature": 0.7},
    "federation": {"participation": 0.3},
    "local": {"rectify_lr": 1.2345678901234567e-5},
    "evaluate": {"personal": False},
}


@pytest.mark.parametrize("tables", [LAB, FULL])
def test_toml_and_back_is_the_same_recipe(write, tables):
    recipe = parse_recipe(tables)
    again = load_recipe(write(to_toml(recipe)))
    assert again == recipe
    assert recipe_differences(again, recipe) == []
    assert to_toml(again) == to_toml(recipe)


def test_written_toml_states_every_default():
    tables = tomllib.loads(to_toml(parse_recipe(LAB)))
    optional = {"lab.alpha", "lab.seed", "lora.smoothing_rank", "privacy.noise_seed"}
    optional |= {"privacy.lifetime_epsilon"}
    optional |= {"local.micro_batch", "evaluate.benchmark_data", "evaluate.benchmark_limit"}
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        if hasattr(section, "model_fields"):
            missing = {f"{name}.{key}" for key in section.model_fields.keys() - tables[name].keys()}
            assert missing <= optional


def test_a_recipe_may_be_as_short_as_its_model(write):
    assert load_recipe(write('[model]\npath = "lab"\n')) == Recipe.model_validate(LAB)


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("recipes/*.toml")), ids=lambda path: path.name
)
def test_shipped_recipes_load(path):
    recipe = load_recipe(path)
    assert load_recipe(path) == recipe
    for name in recipe.baselines:
        named_recipe(name, recipe)


def test_recipes_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(LAB).local.rectify_lr = 1.0


# What is refused


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        ({}, ["model: Field required"]),
        ({"model": {}}, ["model.path: Field required"]),
        ({"model": 3}, ["model = 3"]),
        ({"model": {"path": "lab", "date": "26 Jul"}}, ["model.date = '26 Jul'", '"2024-07-26"']),
        ({"model": {"path": "lab", "date": 2024}}, ["model.date = 2024", "string"]),
        ({"model": {"path": "./m"}}, ["no data: add [[data.sources]]"]),
        ({**LAB, "data": {"sources": [{"path": "a"}]}}, ["remove data.sources"]),
        ({**LAB, "locl": {}}, ["locl: unknown key", "keys: seed, method, baselines", "local"]),
        ({**LAB, "local": {"lr": 1}}, ["local.lr: unknown key", "rectify_lr"]),
        (
            {"model": {"path": "m"}, "data": {"sources": [{"path": "a", "clients": 1}]}},
            ["data.sources.0.clients: unknown key", "client, format"],
        ),
        (
            {"model": {"path": "m"}, "data": {"split": {"x": 1}, "sources": [{"path": "a"}]}},
            ["data.split.x: unknown key", "by, clients"],
        ),
        (
            {"model": {"path": "m"}, "data": {"sources": [{"path": "a", "fields": {"q": "a"}}]}},
            ["data.sources.0.fields.q", "'instruction'", "'response'"],
        ),
        ({**LAB, "lora": {"rank": 0}}, ["lora.rank = 0", "greater than 0"]),
        ({**LAB, "lora": {"alpha": float("inf")}}, ["lora.alpha = inf", "finite"]),
        ({**LAB, "local": {"rectify_lr": 0.0}}, ["local.rectify_lr = 0.0"]),
        ({**LAB, "local": {"rectify_lr": 10.0}}, ["local.rectify_lr = 10.0", "less than 10"]),
        ({**LAB, "local": {"smooth_lr": float("nan")}}, ["local.smooth_lr = nan"]),
        ({**LAB, "local": {"rectify_alone": 1.1}}, ["local.rectify_alone = 1.1"]),
        ({**LAB, "local": {"clip": float("nan")}}, ["local.clip = nan"]),
        ({**LAB, "data": {"held_out": 1.0}}, ["data.held_out = 1.0"]),
        ({**LAB, "data": {"held_out": float("nan")}}, ["data.held_out = nan"]),
        ({**LAB, "federation": {"participation": 0}}, ["federation.participation = 0"]),
        ({**LAB, "federation": {"participation": float("nan")}}, ["participation = nan"]),
        ({**LAB, "federation": {"rounds": -1}}, ["federation.rounds = -1"]),
        ({**LAB, "federation": {"targets": "both"}}, ["federation.targets = 'both'", "'raw'"]),
        ({**LAB, "federation": {"pooled": True}}, ["pooled = true needs targets", "two_stream"]),
        ({**LAB, "distill": {"prompt": "{instruction}"}}, ["prompt must contain {response}"]),
        ({**LAB, "distill": {"max_ratio": float("inf")}}, ["distill.max_ratio = inf", "finite"]),
        ({**LAB, "distill": {"temperature": float("nan")}}, ["distill.temperature = nan"]),
        ({**LAB, "variants": {"a/b": {}}}, ["variants.a/b"]),
        ({**LAB, "lora": {"smoothing_rank": 0}}, ["lora.smoothing_rank = 0", "greater than 0"]),
        ({**LAB, "lab": {"alpha": 0.0}}, ["lab.alpha = 0.0", "greater than 0"]),
        ({**LAB, "lab": {"alpha": float("inf")}}, ["lab.alpha = inf", "finite"]),
        ({**LAB, "distill": {"prefer": "best"}}, ["distill.prefer = 'best'", "'shorter'"]),
        ({**LAB, "federation": {"late": 1.0}}, ["federation.late = 1.0", "less than 1"]),
        ({**LAB, "federation": {"late": -0.1}}, ["federation.late = -0.1"]),
        ({**LAB, "federation": {"late_round": -1}}, ["federation.late_round = -1"]),
        ({**LAB, "local": {"smoothing_state": "x"}}, ["local.smoothing_state = 'x'", "'decay'"]),
        ({**LAB, "local": {"smoothing_decay": 1.1}}, ["local.smoothing_decay = 1.1"]),
        ({**LAB, "local": {"stage_order": "R"}}, ["local.stage_order = 'R'", "'rectify_first'"]),
        ({**LAB, "local": {"smoothing_targets": "x"}}, ["local.smoothing_targets = 'x'", "'raw'"]),
        ({**LAB, "local": {"rectify_targets": "x"}}, ["local.rectify_targets = 'x'", "'raw'"]),
        ({**LAB, "seed": 1.5}, ["seed = 1.5"]),
        ({**LAB, "seed": "x" * 10_000}, ["seed = 'xxx"]),
    ],
)  # fmt: skip
def test_recipes_that_are_refused(tables, parts):
    said = message(tables)
    assert all(part in said for part in parts), said
    assert "Value error" not in said
    assert len(said) < 600


def test_no_rate_rises_along_a_cosine():
    local = {"schedule": "cosine", "final_lr": 2e-4, "consolidate_lr": 1e-4}
    Local(**local)  # without a third stage its rate does not matter
    with pytest.raises(ValidationError, match=r"final_lr = 0\.0002 is above consolidate_lr"):
        Local(**local, consolidate_steps=1)
    with pytest.raises(ValidationError, match=r"final_lr = 0\.0002 is above smooth_lr"):
        Local(**local, smooth_lr=1e-4)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"[model", "Expected ']'"),
        (b"\xff\xfe", "codec can't decode"),
        (b"seed = 1\nseed = 2", "Cannot overwrite"),
        (b"seed = " + b"9" * 5000, "digits"),
        (b"seed = " + b"[" * 100_000, "recursion"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, content, part):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read the recipe") as caught:
        load_recipe(path)
    assert part in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_mistakes_are_told_at_once():
    said = message({**LAB, "lora": {"rank": 0}, "local": {"rectify_lr": 0}, "sed": 1})
    assert all(part in said for part in ("lora.rank", "local.rectify_lr", "sed: unknown key"))


# Differences


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"seed": 1}, ["seed"]),
        ({"lab.seed": 0}, ["lab.seed"]),
        ({"lora.targets": ["q_proj"]}, ["lora.targets"]),
        ({"local.clip": 1}, []),  # 1 and 1.0 are one number
        ({"variants.a": {"local": {"clip": 3}}}, ["variants.a.local.clip"]),
        (
            {"federation.rounds": 3, "distill.attempts": 2},
            ["distill.attempts", "federation.rounds"],
        ),
    ],
)
def test_differences_are_the_dotted_keys(changes, expected):
    recipe = parse_recipe(LAB)
    changed = override_recipe(recipe, changes)
    assert recipe_differences(recipe, changed) == recipe_differences(changed, recipe) == expected


def test_override_changes_what_it_names_and_leaves_the_recipe_alone():
    recipe = parse_recipe(FULL)
    changed = override_recipe(recipe, {"local.clip": 2.0, "federation.rounds": 1})
    assert recipe_differences(recipe, changed) == ["federation.rounds", "local.clip"]
    assert (changed.local.clip, recipe.local.clip) == (2.0, 1.0)
    with pytest.raises(UserError, match=r"local\.clip = -1"):
        override_recipe(recipe, {"local.clip": -1})


# Methods by name


@pytest.mark.parametrize("name", NAMED_METHODS)
def test_a_method_names_itself_whatever_the_recipe_was(name):
    for start in NAMED_METHODS:
        recipe = named_recipe(name, named_recipe(start, parse_recipe(LAB)))
        rounds = 0 if "base" in (name, start) else 20
        assert recipe.federation.rounds == rounds
        assert recipe.federation.pooled == (name == "central")
        if rounds:
            assert own_name(recipe) == ("fedsd" if name == "fedsd_verified" else name)
        assert recipe.baselines == ()


@pytest.mark.parametrize(
    ("federation", "expected"),
    [
        ({}, "fedsdr2"),
        ({"targets": "raw"}, "fedavg"),
        ({"targets": "raw", "pooled": True}, "central"),
        ({"targets": "distilled"}, "fedsd"),
        ({"targets": "mixed"}, "mixed"),
        ({"targets": "mixed", "algorithm": "fedprox"}, "mixed+fedprox"),
        ({"targets": "raw", "rounds": 0}, "base"),
        ({"targets": "raw", "algorithm": "local"}, "local"),
        ({"targets": "distilled", "algorithm": "local"}, "fedsd+local"),
        ({"algorithm": "fedadam", "robust": "krum"}, "fedsdr2+fedadam+krum"),
        ({"targets": "raw", "lora_aggregation": "flora"}, "flora"),
        ({"targets": "raw", "personalisation": "ditto", "compression": "int8"}, "ditto+int8"),
    ],
)
def test_the_recipes_own_method_is_named_by_what_it_does(federation, expected):
    recipe = parse_recipe({**LAB, "federation": federation})
    assert own_name(recipe) == expected
    assert own_name(override_recipe(recipe, {"local.rectify_steps": 3})) == expected


def test_a_variant_is_the_own_method_with_some_keys_changed():
    variants = {"mild": {"local": {"smooth_lr": 0.5}, "federation": {"rounds": 2}}}
    recipe = parse_recipe({**LAB, "baselines": ["mild"], "variants": variants})
    changed = ["baselines", "federation.rounds", "local.smooth_lr"]
    keys = recipe_differences(recipe, named_recipe("mild", recipe))
    assert [key for key in keys if not key.startswith("variants")] == changed


def test_unknown_methods_and_variants_of_unknown_keys_are_refused():
    recipe = parse_recipe({**LAB, "variants": {"odd": {"local": {"lr": 1}}}})
    with pytest.raises(
        UserError, match=r"baselines names 'fedavgg', but .* is not known: join some"
    ):
        named_recipe("fedavgg", recipe)
    with pytest.raises(UserError, match=r"local\.lr: unknown key"):
        named_recipe("odd", recipe)


# Whatever the tables: a recipe or a UserError

KEYS = sorted(
    {*Recipe.model_fields} | {"rank", "path", "sources", "fields", "targets", "clients", "x"}
)
LEAVES = (
    st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.dates() | st.sampled_from(["lab", "raw", "two_stream", "./m", "$X", "a\0", "~q"])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)
SECTIONS = {
    name: st.dictionaries(
        st.sampled_from(sorted(field.annotation.model_fields)), VALUES, max_size=3
    )
    for name, field in Recipe.model_fields.items()
    if hasattr(field.annotation, "model_fields")
}


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5),
    st.fixed_dictionaries({}, optional=SECTIONS),
)
def test_random_tables(loose, sections):
    for tables in (loose, {**LAB, **sections}, {**LAB, **loose, **sections}):
        try:
            recipe = parse_recipe(tables)
        except UserError as error:
            assert str(error).startswith("recipe: ")  # noqa: PT017 (either outcome is right)
            continue
        again = parse_recipe(tomllib.loads(to_toml(recipe)))
        assert recipe_differences(recipe, again) == []


@pytest.fixture(scope="module")
def lab_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "recipe.toml"
    path.write_text(tomli_w.dumps(LAB), encoding="utf-8")
    return path


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["", "seed", "local", "local.clip", "data.sources", "variants.a", "model.path"])
    | st.text(max_size=8),
    st.sampled_from(["", "=", " = "]),
    st.text(max_size=12) | VALUES.map(repr),
)
def test_random_overrides(lab_recipe, key, equals, value):
    try:
        assert isinstance(load_recipe(lab_recipe, [f"{key}{equals}{value}"]), Recipe)
    except UserError as error:
        assert str(error)  # noqa: PT017 (either outcome is right)
