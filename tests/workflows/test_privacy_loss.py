"""The epsilon of a run as a whole: all methods, and all seeds on the same data, composed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsdr.algorithms.accounting import composed_epsilon, single_epsilon
from fedsdr.core import files
from fedsdr.core.layout import SUMMARY_FILE
from fedsdr.core.progress import silent_reporter
from fedsdr.export.write import ExportChoice, export_model
from fedsdr.recipe.load import load_recipe, override_recipe, parse_recipe
from fedsdr.recipe.methods import method_folders, resolve_methods
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.report.terminal import print_summary
from fedsdr.workflows.finished import open_finished
from fedsdr.workflows.privacy_loss import planned_epsilon, privacy_of_run, privacy_spent
from fedsdr.workflows.run import compare_seeds
from support import tiny_recipe

NAMED = {"sources": [{"path": "a.jsonl", "client": "anna"}, {"path": "b.jsonl", "client": "ben"}]}
POOLED = {"sources": [{"path": "a.jsonl"}]}
Cohorts = Sequence[Sequence[str]]


def recipe_of(data: Mapping[str, Any] | None = None, **tables: Any) -> Recipe:
    model = {"path": "lab" if data is None else "any/model"}
    privacy = {"mode": "local", "noise_multiplier": 5.0}
    return parse_recipe(
        {"method": "paper", "model": model, "data": data or {}, "privacy": privacy, **tables}
    )


def finished(folder: Path, recipe: Recipe, cohorts: Mapping[str, Cohorts]) -> Path:
    """A run's logs: method -> who was asked in each round; what has no name here sent nothing."""
    for name, place in method_folders(recipe, folder).items():
        rows = [
            {"round": k, "clients": [*who], "train": {"bytes_up": 8}}
            for k, who in enumerate(cohorts.get(name, []), start=1)
        ]
        files.write_json_lines(place / "metrics.jsonl", [{"round": 0, "eval": {"loss": 1}}, *rows])
    return folder


def total(recipe: Recipe, *folders: Path) -> float:
    found = privacy_of_run(resolve_methods(recipe), folders)
    assert found is not None
    assert f"epsilon {found['epsilon']:.4g} at delta" in found["words"]
    return float(found["epsilon"])


def test_releases_of_several_noises_compose():
    """Gaussian mechanisms together are one, of the summed squares of sensitivity over noise."""
    whole = 1 / math.sqrt(3 / 2**2 + 2 / 5**2)
    assert composed_epsilon({2.0: 3, 5.0: 2}, 1e-5, True) == pytest.approx(
        single_epsilon(whole, 1, 1e-5, True), rel=2e-3
    )
    assert composed_epsilon({2.0: 3, 5.0: 0}, 1e-5, True) == single_epsilon(2.0, 3, 1e-5, True)
    assert composed_epsilon({2.0: 3, 0.0: 1}, 1e-5, True) == math.inf
    assert composed_epsilon({}, 1e-5, True) == 0


def test_the_methods_of_a_run_add_up(tmp_path):
    """And it is the client that was asked most, over all of them, that counts."""
    recipe = recipe_of(NAMED, baselines=["fedavg", "fedprox"])
    cohorts = {"fedavg": [["anna"], ["anna"]], "fedprox": [["ben"]], "fedsdr": [["ben"], ["ben"]]}
    found = total(recipe, finished(tmp_path, recipe, cohorts))
    assert found == single_epsilon(5.0, 3, 1e-5, True)
    alone = privacy_spent(recipe, files.read_json_lines(tmp_path / "metrics.jsonl"))
    assert alone["epsilon"] == single_epsilon(5.0, 2, 1e-5, True) < found


def test_a_client_that_is_absent_may_have_sent_its_update_all_the_same(tmp_path):
    recipe = recipe_of(NAMED)
    finished(tmp_path, recipe, {"fedsdr": [["anna"], ["anna"]]})
    rows = files.read_json_lines(tmp_path / "metrics.jsonl")
    late = {"round": 3, "clients": ["ben"], "absent": {"anna": "no answer"}, "train": {}}
    files.write_json_lines(tmp_path / "metrics.jsonl", [*rows, late])
    assert total(recipe, tmp_path) == single_epsilon(5.0, 3, 1e-5, True)


@pytest.mark.parametrize(
    ("data", "tables", "releases"),
    [
        (NAMED, {}, 3),  # anna 3 of 4, by her name
        (POOLED, {}, 4),  # dealt anew: a record may be with whoever is asked twice
        (None, {"lab": {"seed": 3}}, 3),  # one world
        (None, {}, 2),  # a world for each seed
    ],
)
def test_seeds_on_the_same_data_add_up(tmp_path, data, tables, releases):
    recipe = recipe_of(data, **tables)
    one = finished(tmp_path / "1", recipe, {"fedsdr": [["anna"], ["anna"], ["ben"]]})
    two = finished(tmp_path / "2", recipe, {"fedsdr": [["ben"], ["anna"], ["ben"]]})
    assert total(recipe, one, two) == single_epsilon(5.0, releases, 1e-5, True)


def test_what_differs_between_methods_is_composed_as_it_is(tmp_path):
    """Each with its noise; of two deltas the smaller, of two adjacencies the stricter."""
    changes = {"privacy": {"mode": "central", "noise_multiplier": 2.0, "delta": 1e-6}}
    recipe = recipe_of(NAMED, variants={"loud": changes}, baselines=["loud"])
    cohorts = {"loud": [["anna"]] * 3, "fedsdr": [["anna"]] * 2}
    found = total(recipe, finished(tmp_path, recipe, cohorts))
    assert found == composed_epsilon({2.0: 3, 5.0: 2}, 1e-6, True)


def test_pooled_records_are_everybodys(tmp_path):
    recipe = recipe_of(NAMED, baselines=["central"])
    cohorts = {"central": [["all"]] * 2, "fedsdr": [["anna"]]}
    assert total(recipe, finished(tmp_path, recipe, cohorts)) == single_epsilon(5.0, 3, 1e-5, True)


@pytest.mark.parametrize("change", [{"mode": "none"}, {"noise_multiplier": 0.0}])
def test_one_method_without_noise_undoes_the_others(tmp_path, change):
    recipe = recipe_of(NAMED, variants={"bare": {"privacy": change}}, baselines=["bare"])
    finished(tmp_path, recipe, {"bare": [["anna"]], "fedsdr": [["anna"]]})
    found = privacy_of_run(resolve_methods(recipe), [tmp_path])
    assert found is not None
    assert found["epsilon"] is None
    assert "no bound" in found["words"]
    assert planned_epsilon(resolve_methods(recipe)) == math.inf


def test_noise_whose_seed_is_in_the_recipe_is_said_to_protect_nothing(tmp_path):
    recipe = recipe_of(NAMED)
    finished(tmp_path, recipe, {"fedsdr": [["anna"]]})
    for seed, known in ((None, False), (7, True)):
        known_to = override_recipe(recipe, {"privacy.noise_seed": seed})
        found = privacy_of_run(resolve_methods(known_to), [tmp_path])
        assert ("whoever has that can take it off" in found["words"]) == known


def test_without_differential_privacy_nothing_is_stated(tmp_path):
    recipe = override_recipe(recipe_of(NAMED), {"privacy.mode": "none"})
    assert privacy_of_run(resolve_methods(recipe), [finished(tmp_path, recipe, {})]) is None


def test_a_whole_run_costs_what_was_planned(tmp_path):
    recipe = recipe_of(NAMED, federation={"rounds": 2}, baselines=["base", "fedprox"])
    finished(tmp_path, recipe, {"fedprox": [["anna"]] * 2, "fedsdr": [["anna"]] * 2})
    assert planned_epsilon(resolve_methods(recipe)) == total(recipe, tmp_path)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two seeds, two rounds of each."""
    folder = tmp_path_factory.mktemp("compared")
    recipe_file = tiny_recipe.write_recipe(
        folder,
        federation={"rounds": 2, "targets": "raw"},
        privacy={"mode": "local", "noise_multiplier": 5.0, "clip": 0.1},
    )
    recipe = override_recipe(load_recipe(recipe_file), {"baselines": ["fedprox"]})
    compare_seeds(recipe, [0, 1], folder / "out", silent_reporter())
    return folder / "out"


def test_the_whole_is_stated_wherever_a_result_is_read(compared, tmp_path, capsys):
    summary = files.read_json(compared / SUMMARY_FILE)
    whole = summary["privacy"]
    assert whole["epsilon"] == single_epsilon(5.0, 2 * 2 * 2, 1e-5, True)
    assert summary["methods"]["fedprox"]["epsilon"]["mean"] == single_epsilon(5.0, 2, 1e-5, True)
    stated = f"epsilon {whole['epsilon']:.4g} at delta 1e-05"
    assert stated in whole["words"]
    assert stated in (compared / "report.html").read_text()
    print_summary(summary)
    assert stated in " ".join(capsys.readouterr().out.split())
    export_model(
        open_finished(compared / "seed-1"), ExportChoice(), tmp_path / "out", silent_reporter()
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"epsilon {single_epsilon(5.0, 2, 1e-5, True):.4g} at" in card
    assert stated in card
    assert "no epsilon covers them" in card


def test_a_run_that_was_moved_out_of_its_comparison_states_its_own(compared, tmp_path):
    (compared / "seed-0").rename(tmp_path / "seed-0")
    export_model(
        open_finished(tmp_path / "seed-0"), ExportChoice(), tmp_path / "out", silent_reporter()
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"epsilon {single_epsilon(5.0, 2 * 2, 1e-5, True):.4g} at delta" in card
