"""`method`: the keys that it sets, what a recipe sets itself, and what baselines are without it."""

import pytest

from fedsdr.core.errors import UserError
from fedsdr.recipe.load import (
    load_recipe,
    override_recipe,
    parse_recipe,
    recipe_differences,
    to_toml,
)
from fedsdr.recipe.methods import named_recipe, own_name, resolve_methods
from fedsdr.recipe.sections.local import Local
from fedsdr.recipe.sections.method import ADDED, STREAMS, method_keys
from fedsdr.recipe.sections.model import Model
from fedsdr.recipe.sections.recipe import Recipe

LAB = {"model": {"path": "lab"}}
OLD = {**LAB, "method": "paper"}
NEW = {**LAB, "method": "fedsdr2"}
CHANGED = {*ADDED, "local.smooth_lr"} - {"distill.temperature"}  # whose default is the same


def differences(recipe: Recipe) -> set[str]:
    """From the paper's form, `method` itself aside."""
    return {*recipe_differences(parse_recipe(OLD), recipe)} - {"method"}


def test_fedsdr2_is_the_default_of_a_recipe_that_chooses_nothing_else():
    assert parse_recipe(LAB) == Recipe(model=Model(path="lab")) == parse_recipe(NEW)
    tuned = {**LAB, "local": {"smooth_lr": 2e-3}, "rehearsal": {"share": 0.0}}
    assert parse_recipe(tuned) == parse_recipe({**tuned, "method": "fedsdr2"})


@pytest.mark.parametrize("targets", ["raw", "distilled", "mixed", "two_shared_streams"])
def test_a_recipe_of_other_targets_is_of_the_papers_form(targets):
    chosen = {**LAB, "federation": {"targets": targets}}
    assert parse_recipe(chosen) == parse_recipe({**chosen, "method": "paper"})
    assert override_recipe(parse_recipe(LAB), {"federation.targets": targets}) == override_recipe(
        parse_recipe(OLD), {"federation.targets": targets}
    )
    assert load_recipe(LAB, {"federation.targets": targets}) == parse_recipe(chosen)
    back = {"federation.targets": "two_stream"}
    assert load_recipe(chosen, back) == override_recipe(parse_recipe(chosen), back)


@pytest.mark.parametrize("key", STREAMS)
def test_a_recipe_that_chooses_what_streams_do_is_of_the_papers_form(key):
    section, name = key.split(".")
    for value in (ADDED[key], getattr(parse_recipe(OLD).local, name)):
        chosen = {**LAB, section: {name: value}}
        assert parse_recipe(chosen) == parse_recipe({**chosen, "method": "paper"})
        built = Recipe(model=Model(path="lab"), local=Local(**{name: value}))
        assert built == parse_recipe(chosen)


@pytest.mark.parametrize("key", STREAMS)
def test_an_override_of_one_key_leaves_the_method_as_it_is(key):
    changes = {key: getattr(parse_recipe(OLD).local, key.removeprefix("local."))}
    found = load_recipe(LAB, changes)
    assert found.method == "fedsdr2"
    assert found == load_recipe(parse_recipe(LAB), changes)
    assert recipe_differences(found, parse_recipe(LAB)) == [key]


def test_an_override_by_the_method_that_a_recipe_has_changes_nothing():
    own = {**LAB, "local": {"smooth_lr": 3e-3}, "rehearsal": {"share": 0.5}}
    assert load_recipe(own, {"method": "fedsdr2"}) == parse_recipe(own)


@pytest.mark.parametrize(
    "tables",
    [
        {"local": {"schedule": "cosine", "final_lr": 2e-4}},
        {"federation": {"loss": "on_policy"}},
        {"model": {"path": "any", "thinking": "on"}, "data": {"sources": [{"path": "a.jsonl"}]}},
        {"distill": {"generator": "transformers"}},
    ],
)
def test_what_only_the_method_s_keys_exclude_has_the_paper_s_as_a_remedy(tables):
    with pytest.raises(UserError, match='; or set method = "paper", without the keys that'):
        parse_recipe({**LAB, **tables})
    parse_recipe({**LAB, **tables, "method": "paper"})


def test_that_remedy_is_not_offered_where_it_is_none():
    wrong = ({**LAB, "seed": "x"}, {**OLD, "local": {"clip": -1}}, {**LAB, "method": "best"})
    for tables in wrong:
        with pytest.raises(UserError) as refused:
            parse_recipe(tables)
        assert "without the keys" not in str(refused.value)


@pytest.mark.parametrize(
    ("size", "share", "examples"), [(1, 0.0, 0), (2, 0.2, 1), (3, 0.2, 1), (16, 0.2, 3)]
)
def test_small_batches_rehearse_an_example_if_they_can(size, share, examples):
    recipe = parse_recipe({**LAB, "local": {"batch_size": size}})
    assert recipe.rehearsal.share == share
    assert recipe.rehearsal.examples(size) == examples
    with pytest.raises(UserError, match="leaves no place for a client's own record"):
        parse_recipe({**LAB, "local": {"batch_size": 1}, "rehearsal": {"share": 0.5}})


def test_a_resolved_recipe_of_before_there_were_methods_keeps_its_meaning(tmp_path):
    file = tmp_path / "recipe.toml"
    tables = parse_recipe(OLD).model_dump(mode="json", exclude_none=True)
    del tables["method"], tables["rehearsal"], tables["distill"]["contrast"]
    assert load_recipe(tables) == parse_recipe(OLD)
    file.write_text(to_toml(parse_recipe(OLD)).replace('method = "paper"\n', ""), encoding="utf-8")
    assert load_recipe(file) == parse_recipe(OLD)


def test_the_papers_form_sets_nothing():
    assert method_keys("paper", 1e-3) == {}
    assert (parse_recipe(OLD).local, parse_recipe(OLD).rehearsal.share) == (Local(), 0.0)


def test_fedsdr2_sets_its_keys_and_nothing_else():
    recipe = parse_recipe(NEW)
    assert differences(recipe) == CHANGED
    assert (recipe.local.rectify_alone, recipe.rehearsal.share) == (1.0, 0.2)
    assert recipe.local.smooth_lr == pytest.approx(recipe.local.rectify_lr / 3)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("distill", "temperature", 0.7), ("rehearsal", "share", 0.0), ("local", "smooth_lr", 2e-3)],
)
def test_what_a_recipe_sets_itself_stays(section, key, value):
    recipe = parse_recipe({**NEW, section: {key: value}})
    assert getattr(getattr(recipe, section), key) == value
    assert CHANGED - {f"{section}.{key}"} <= differences(recipe)


def test_sections_that_a_program_builds_are_filled_in_too():
    built = Recipe(method="fedsdr2", model=Model(path="lab"), local=Local(rectify_lr=6e-3))
    assert built == parse_recipe({**NEW, "local": {"rectify_lr": 6e-3}})
    assert built.local.smooth_lr == pytest.approx(2e-3)


def test_a_resolved_recipe_is_itself_again(tmp_path):
    file = tmp_path / "recipe.toml"
    recipe = parse_recipe({**NEW, "local": {"smoothing_state": "reset"}})
    file.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(file) == recipe


@pytest.fixture(params=["sparse", "resolved"])
def file(request, tmp_path):
    """A recipe of the paper's method in a file: what its author wrote, or all keys spelled out."""
    path = tmp_path / "recipe.toml"
    path.write_text('method = "paper"\nmodel.path = "lab"\nlocal.clip = 2.0\n', encoding="utf-8")
    if request.param == "resolved":
        path.write_text(to_toml(load_recipe(path)), encoding="utf-8")
    return path


def test_another_method_by_an_override_has_all_of_its_keys(file):
    paper, new = load_recipe(file), load_recipe(file, ["method=fedsdr2"])
    assert {*recipe_differences(paper, new)} == CHANGED | {"method"}
    assert override_recipe(paper, {"method": "fedsdr2"}) == new
    assert load_recipe(paper, {"method": "fedsdr2"}) == new
    file.write_text(to_toml(new), encoding="utf-8")
    assert load_recipe(file, ["method=paper"]) == override_recipe(new, {"method": "paper"}) == paper


def test_a_method_that_is_none_is_refused_with_the_file_s_name(file):
    with pytest.raises(UserError, match=r"recipe\.toml: method = 'best'"):
        load_recipe(file, ["method=best"])


def test_an_override_of_the_method_gives_way_to_others(file):
    new = load_recipe(file, ["method=fedsdr2", "local.smooth_lr=2e-3", "rehearsal.share=0.5"])
    assert (new.local.smooth_lr, new.rehearsal.share, new.distill.contrast) == (2e-3, 0.5, 1.0)


def test_a_recipe_s_own_value_is_overridden_by_the_method_and_not_by_its_mention():
    own = {**OLD, "local": {"smooth_lr": 3e-3}}
    assert parse_recipe({**own, "method": "fedsdr2"}).local.smooth_lr == 3e-3
    assert load_recipe(own, {"method": "fedsdr2"}).local.smooth_lr == pytest.approx(1e-4)


@pytest.mark.parametrize("rate", [6e-3, "6e-3", ".006"])
def test_the_rate_of_s_follows_that_of_r(rate):
    built = load_recipe({**NEW, "local": {"rectify_lr": rate}})
    assert built.local.smooth_lr == pytest.approx(2e-3)
    assert differences(built) == CHANGED | {"local.rectify_lr"}
    changes = {"local.rectify_lr": rate}
    assert override_recipe(parse_recipe(NEW), changes) == built
    assert override_recipe(parse_recipe(OLD), {"method": "fedsdr2", **changes}) == built
    fixed = parse_recipe({**NEW, "local": {"smooth_lr": 3e-3}})
    assert override_recipe(fixed, changes).local.smooth_lr == 3e-3


@pytest.mark.parametrize("own", [{}, {"rehearsal": {"share": 0.25}, "distill": {"contrast": 2.0}}])
def test_baselines_have_nothing_of_what_the_method_adds(own):
    names = ["fedavg", "fedsd", "fedsdr", "fedsdr2+fedavgm"]
    resolved = resolve_methods(parse_recipe({**NEW, **own, "baselines": names}))
    assert [method.name for method in resolved] == [*names, "fedsdr2"]
    for name, method in zip(names[:3], resolved, strict=False):
        assert method.recipe == named_recipe(name, parse_recipe(LAB))
    added = {*recipe_differences(resolved[3].recipe, resolved[4].recipe)} - {"baselines"}
    assert added == {"federation.algorithm"}


def test_what_tunes_the_baselines_too_is_theirs():
    own = {"local": {"smooth_lr": 3e-3}, "distill": {"temperature": 0.7}}
    named = named_recipe("fedsdr", parse_recipe({**NEW, **own}))
    assert named == named_recipe("fedsdr", parse_recipe({**LAB, **own}))


@pytest.mark.parametrize("targets", ["raw", "distilled", "mixed", "two_shared_streams"])
def test_other_targets_are_another_method(targets):
    with pytest.raises(UserError, match=f'federation.targets = "{targets}".*method = "paper"'):
        parse_recipe({**NEW, "federation": {"targets": targets}})


def test_the_paper_s_recipe_may_name_it_as_a_baseline():
    named = named_recipe("fedsdr2", parse_recipe(LAB))
    assert named == parse_recipe(NEW)
    assert own_name(named) == "fedsdr2"
    with pytest.raises(UserError, match="twice"):
        resolve_methods(parse_recipe({**NEW, "baselines": ["fedsdr2"]}))


@pytest.mark.parametrize(
    "tables",
    [
        {**NEW, "local": {"rectify_lr": "fast"}},
        {**NEW, "local": 3},
        {**NEW, "rehearsal": ["share"]},
        {**LAB, "method": "fedsdr3"},
        {**LAB, "method": 2},
        {**LAB, "method": ["fedsdr2"]},
    ],
)
def test_what_is_no_table_number_or_method_is_refused(tables):
    with pytest.raises(UserError, match=r"rectify_lr|local|rehearsal|'paper' or 'fedsdr2'"):
        parse_recipe(tables)


@pytest.mark.parametrize("key", ["method", "local.rectify_lr"])
def test_a_number_that_no_text_or_float_can_hold_is_refused(key):
    huge = 16**5000
    with pytest.raises(UserError, match="whole number beyond 64 bits"):
        override_recipe(parse_recipe(NEW), {key: huge})
    with pytest.raises(UserError, match="whole number beyond 64 bits"):
        load_recipe(LAB, {"method": "fedsdr2", key: huge})
