"""`local.cohort` in a run: the same adapters as one client after another, from a recipe."""

import pytest
import torch

from fedsdr.algorithms.contract import Round
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.data.example import Example
from fedsdr.federation import cohort_size
from fedsdr.federation.in_process import InProcessEngine, chunked_names
from fedsdr.federation.rounds import run_round
from fedsdr.model import packing
from fedsdr.recipe import load as recipes
from fedsdr.workflows.prepare import prepare_run
from support.tiny_recipe import write_recipe


def server_after(path, folder, cohort):
    recipe = recipes.load_recipe(write_recipe(path), [f"local.cohort={cohort}"])
    prepared = prepare_run(recipe)
    loaded, method = prepared.load(silent_reporter()), prepared.methods[-1].within(folder)
    examples = {name: {"raw": each, "distilled": each} for name, each in loaded.raw.items()}
    engine = InProcessEngine(loaded, method, examples, silent_reporter())
    algorithm = method.algorithm
    state = algorithm.init(engine.first_adapter())
    for number in (1, 2):
        state, row = run_round(algorithm, engine, state, Round(number, 0), engine.clients())
        assert row["clients"] == list(engine.clients())
    return engine, state.adapter, row["train"]


def test_a_run_by_cohorts_is_one_by_clients(tmp_path):
    alone, wanted, told = server_after(tmp_path, tmp_path / "a", 1)
    two, got, also = server_after(tmp_path, tmp_path / "b", 2)
    every, most, _ = server_after(tmp_path, tmp_path / "c", '"auto"')
    assert (alone.at_once, two.at_once) == (1, 2)
    assert every.at_once > len(every.clients()), "a tiny model fits many times"
    for found in (got, most):
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key], atol=2e-3, rtol=0)
    assert also["loss/rectify"] == pytest.approx(told["loss/rectify"], rel=1e-3)
    assert set(two.store.folder.iterdir()) == {two.store.folder / name for name in two.clients()}


def test_rewrites_that_are_longer_leave_room_for_fewer(tmp_path, monkeypatch):
    recipe = recipes.load_recipe(write_recipe(tmp_path), ['local.cohort="auto"'])
    prepared = prepare_run(recipe)
    loaded, method = prepared.load(silent_reporter()), prepared.methods[-1].within(tmp_path)
    raw = {name: {"raw": each} for name, each in loaded.raw.items()}
    longest = max(len(example) for each in loaded.raw.values() for example in each)
    rewrite = Example((7,), (7,) * 2 * longest)
    longer = {name: {**each, "distilled": [rewrite]} for name, each in raw.items()}
    monkeypatch.setattr(cohort_size, "free_memory", lambda device: 2**30)
    sizes = [
        InProcessEngine(loaded, method, examples, silent_reporter()).at_once
        for examples in (raw, longer)
    ]
    assert sizes[0] > 1.5 * sizes[1] > 0


def test_clients_are_trained_one_by_one_where_their_padding_would_be_dear(tmp_path, monkeypatch):
    recipe = recipes.load_recipe(write_recipe(tmp_path), ['local.cohort="auto"'])
    prepared = prepare_run(recipe)
    loaded, method = prepared.load(silent_reporter()), prepared.methods[-1].within(tmp_path)
    even, odd = ({"raw": [Example((7,), (7,) * n) for n in sizes]} for sizes in ([9] * 8, [3, 30]))
    raw = {"even": {"ann": even, "ben": even}, "uneven": {"ann": even, "ben": odd}}
    engines = {
        name: lambda its=its: InProcessEngine(loaded, method, its, silent_reporter())
        for name, its in raw.items()
    }
    assert min(new().at_once for new in engines.values()) > 1, "padding costs a tiny model nothing"
    monkeypatch.setattr(packing, "CALL", {"cpu": 1.0})
    assert engines["even"]().at_once > 1
    assert engines["uneven"]().at_once == 1
    loaded.model.packing.__dict__["possible"] = False  # padded all the same, then
    assert engines["uneven"]().at_once > 1


@pytest.mark.parametrize(
    ("lengths", "rows", "wanted"),
    [([5, 1, 3, 2, 4, 6], 3, [2, 4, 6]), ([7], 4, [7] * 4), ([1, 9], 1, [9]), ([3, 1], 2, [1, 3])],
)
def test_a_typical_batch_is_spread_over_all_lengths(lengths, rows, wanted):
    assert cohort_size.typical_lengths(lengths, rows) == wanted


def test_names_are_taken_a_few_at_a_time():
    assert list(chunked_names("abcde", 2)) == [("a", "b"), ("c", "d"), ("e",)]
    assert list(chunked_names("ab", 5)) == [("a", "b")]


@pytest.mark.parametrize("value", ["0", "-1", '"many"'])
def test_a_cohort_of_none_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="cohort"):
        recipes.load_recipe(write_recipe(tmp_path), [f"local.cohort={value}"])
