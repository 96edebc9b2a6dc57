"""A tiny recipe and a finished run of it, for tests that only look at them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsdr.core.progress import silent_reporter
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe
from support.finished_runs import BASELINES


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with model, data and recipe.toml, and the cache of all runs of this module."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        tiny_recipe.write_recipe(folder)
        yield folder


@pytest.fixture(scope="module")
def recipe(home: Path) -> Recipe:
    return load_recipe(home / "recipe.toml")


@pytest.fixture(scope="module")
def finished(home: Path, recipe: Recipe) -> Path:
    """A run with baselines, to look at and not to touch."""
    out = home / "finished"
    run_recipe(override_recipe(recipe, {"baselines": BASELINES}), out, silent_reporter())
    return out
