"""From a recipe's choices to one algorithm: what is refused, what is listed, and a new one."""

import itertools
import re
import tomllib
from functools import partial

import pytest
from typer.testing import CliRunner

from fedsdr.algorithms.table import TABLES, TARGETS
from fedsdr.cli.main import app
from fedsdr.core.errors import UserError
from fedsdr.recipe import methods
from fedsdr.recipe.build import build_algorithm
from fedsdr.recipe.choices import check_cohort
from fedsdr.recipe.exclusions import EXCLUSIONS
from fedsdr.recipe.load import override_recipe, parse_recipe, recipe_differences
from fedsdr.recipe.methods import named_recipe, own_name
from fedsdr.recipe.sections.evaluate import Evaluate
from fedsdr.recipe.sections.federation import Privacy
from fedsdr.recipe.sections.model import Lora, Model
from fedsdr.recipe.sections.recipe import Recipe
from support.algorithm_cases import CASES
from support.repository import REPOSITORY
from support.toy_rounds import build
from support.two_shared_streams import REFUSED_CHOICES, build_shared

LAB = Recipe(model=Model(path="lab"))


EXCLUDED = [
    ("local+ffa", {}, ["'local' sends nothing", "lora_aggregation = 'ffa'", "'factors'"]),
    ("local+ditto", {}, ["'local' sends nothing", "personalisation = 'ditto'"]),
    ("fedsdr+local+median", {}, ["'local' sends nothing", "robust = 'median'"]),
    ("local+int8", {}, ["'local' sends nothing", "compression = 'int8'"]),
    ("local+fedsa", {}, ["lora_aggregation = 'fedsa'"]),
    ("local", {"privacy": Privacy(mode="local")}, ["'local' sends nothing", "mode = 'local'"]),
    ("flora+fedadam", {}, ["'flora' starts a fresh adapter", "what 'fedadam' remembers"]),
    ("fedsd+flora+scaffold", {}, ["'flora' starts a fresh adapter", "'scaffold'"]),
    ("flora+topk", {}, ["the error feedback of 'topk'", "choose fp16"]),
    ("flora+ditto", {}, ["towards which 'ditto' cannot pull"]),
    ("fedsdr+fedex+ditto", {}, ["'fedex' moves the global model into its frozen part"]),
    ("scaffold+krum", {}, ["'scaffold' needs the mean", "'krum' takes less"]),
    ("feddyn+clipping", {}, ["'feddyn' needs the mean", "federation.robust to 'none'"]),
    ("scaffold", {"privacy": Privacy(mode="local")}, ["the noise of 'local' privacy"]),
    ("feddyn", {"privacy": Privacy(mode="central")}, ["the noise of 'central' privacy"]),
    ("feddyn+flexlora", {}, ["changes of their factors", "choose scaffold"]),
    ("flexlora", {"privacy": Privacy(mode="central")}, ["one noisy mean", "to 'local'"]),
    ("median", {"privacy": Privacy(mode="central")}, ["gives 'median' one noisy mean"]),
    (
        "fedavg",
        {"privacy": Privacy(mode="central"), "evaluate": Evaluate(aggregation_error=True)},
        ["evaluate.aggregation_error compares", "'central' privacy", "to false"],
    ),
    ("fedex", {"lora": Lora(ranks={"anna": 4})}, ["lora.ranks needs", "not 'fedex'"]),
    ("flexlora+scaffold", {"lora": Lora(ranks={"anna": 4})}, ["lora.ranks and 'scaffold'"]),
    ("flexlora+krum", {"lora": Lora(ranks={"anna": 4})}, ["entry by entry", "'clipping'"]),
    ("flora+fp16", {"lora": Lora(ranks={"anna": 4})}, ["updates of one shape"]),
]


@pytest.mark.parametrize(("name", "sections", "parts"), EXCLUDED)
def test_choices_that_exclude_each_other(name, sections, parts):
    with pytest.raises(UserError, match="these choices exclude each other") as caught:
        build(name, **sections)
    assert all(part in str(caught.value) for part in parts)


def test_the_examples_above_show_every_exclusion():
    shown = set()
    examples = [partial(build, name, **sections) for name, sections, _ in EXCLUDED]
    examples += [partial(build_shared, **{key: value}) for key, value in REFUSED_CHOICES]
    for example in examples:
        with pytest.raises(UserError) as caught:
            example()
        told = str(caught.value)
        pieces = [re.split(r"\{\w+\}", message) for *_, message in EXCLUSIONS]
        shown |= {i for i, each in enumerate(pieces) if all(piece in told for piece in each)}
    assert shown == {*range(len(EXCLUSIONS))}


@pytest.mark.parametrize("lora", [{}, {"anna": 16}])
def test_equal_ranks_are_no_several_ranks(lora):
    build("fedex", lora=Lora(ranks=lora))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("fedprox", {"mu": "much"}, "options.fedprox.mu = 'much': Input should be a valid number"),
        ("fedprox", {"nu": 1}, r"options.fedprox.nu = 1: .*not permitted \(options: mu\)"),
        ("fedavg", {"lr": 1}, r"options.fedavg.lr = 1: .*not permitted \(options: none\)"),
        ("fedprix", {}, "options.fedprix is not known: there are options for fedprox, scaffold"),
        ("trimmed_mean", {"share": 0.5}, "options.trimmed_mean.share = 0.5"),
    ],
)
def test_options_are_checked_whether_they_are_used_or_not(name, options, reason):
    with pytest.raises(UserError, match=reason):
        build_algorithm(override_recipe(LAB, {f"options.{name}": options}))


def test_krum_needs_enough_clients():
    krum = override_recipe(LAB, {"federation.robust": "krum", "options.krum": {"malicious": 2}})
    check_cohort(krum, 5)
    with pytest.raises(UserError, match="'krum' needs at least 5 clients in a round, and 4 take"):
        check_cohort(krum, 4)
    check_cohort(LAB, 1)


@pytest.mark.parametrize("key", TABLES)
def test_an_unknown_choice_lists_the_known_ones(key):
    if key in ("federation.targets", "federation.loss", "privacy.mode"):
        pytest.skip("the recipe's own type checks these")
    with pytest.raises(UserError, match=f"{key} = 'nosuch' is not known: choose from ") as caught:
        build_algorithm(override_recipe(LAB, {key: "nosuch"}))
    assert all(name in str(caught.value) for name in TABLES[key])


def test_every_row_says_what_it_is_and_where_it_comes_from():
    rows = [row for rows in TABLES.values() for row in rows.values()]
    assert all(row.line and row.citation for row in rows)
    assert all(row.options() for row in rows), "every option has a default"


def test_names_are_unique_since_options_and_methods_go_by_them():
    names = [
        name
        for key, rows in TABLES.items()
        if key != "privacy.mode"
        for name in rows
        if name != "none"
    ]
    assert len(set(names)) == len(names)
    # Those of targets have no options, and are called by a method's name in any case.
    assert not {*names} - {*TARGETS} & {*methods.NAMED_METHODS}


def test_the_command_lists_them_all():
    done = CliRunner().invoke(app, ["algorithms"])
    assert done.exit_code == 0
    for key, rows in TABLES.items():
        assert key in done.output
        for name, row in rows.items():
            assert re.search(rf"^ *{name} ", done.output, re.MULTILINE), name
            assert row.line.split()[0] in done.output
            assert all(option in done.output for option in row.options.model_fields)


# Methods by name


def test_a_method_is_called_by_its_choices():
    cases = {case.rpartition(" ")[2] for case in CASES}
    for name in cases | {"base", "central", "central+fedprox"}:
        each = named_recipe(name, LAB)
        assert named_recipe(own_name(each), LAB) == each
        assert {*own_name(each).split("+")} | {"fedavg"} == {*name.split("+")} | {"fedavg"}


def test_the_order_of_the_parts_does_not_matter():
    for parts in itertools.permutations(["fedsdr", "fedadam", "flexlora"]):
        assert own_name(named_recipe("+".join(parts), LAB)) == "fedsdr+fedadam+flexlora"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fedavg+fedprox", "chooses federation.algorithm twice"),
        ("fedsd+fedsdr", "chooses federation.targets twice"),
        ("fedsd+", "'' is not known"),
        ("raw+fedavg", "'raw' is not known"),
    ],
)
def test_names_that_make_no_method(name, reason):
    with pytest.raises(UserError, match=reason):
        named_recipe(name, LAB)


def test_a_method_keeps_the_recipes_privacy():
    private = override_recipe(LAB, {"privacy.mode": "local"})
    assert recipe_differences(named_recipe("fedprox", private), named_recipe("fedprox", LAB)) == [
        "privacy.mode"
    ]


# What the pages show


def test_the_choices_that_the_pages_show_go_together():
    """README.md and docs/algorithms.md each have a [federation] table that uses every key."""
    for page in ("README.md", "docs/algorithms.md"):
        blocks = re.findall(r"```toml\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
        shown = [tomllib.loads(block) for block in blocks]
        whole = next(each for each in shown if "robust" in each.get("federation", {}))
        build_algorithm(parse_recipe({"model": {"path": "lab"}, **whole}))
        assert {f"federation.{key}" for key in whole["federation"]} == TABLES.keys() - {
            "privacy.mode"
        }
