"""Algorithms given as objects: composed or as they are, next to baselines, and what is refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsdr
from fedsdr.algorithms.contract import (
    Algorithm,
    ClientState,
    Fit,
    Round,
    ServerState,
    Setup,
    Stage,
    Update,
)
from fedsdr.algorithms.fedavg import client_update, fedavg
from fedsdr.core.adapters import Adapter, WeightedSum, add, scale
from fedsdr.core.progress import silent_reporter
from fedsdr.model.peft_format import read_adapter
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe, toy_clients
from support.repository import REPOSITORY


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("federation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        tiny_recipe.write_recipe(folder, federation={"rounds": 2, "targets": "raw"})
        yield folder


@pytest.fixture(scope="module")
def federation(home: Path) -> fedsdr.Federation:
    recipe = fedsdr.load_recipe(home / "recipe.toml", {"baselines": ["fedavg"]})
    return fedsdr.Federation(recipe, progress=False)


def half_steps(setup: Setup) -> Algorithm:
    """FedAvg whose server takes half of the mean change."""

    def finish(state: ServerState, fold: WeightedSum, round: Round) -> ServerState:
        mean = fold.mean(like=state.adapter)
        return ServerState(add(state.adapter, scale(mean, 0.5)), state.memory)

    return fedavg(setup)._replace(finish=finish)


def test_a_federation_says_its_clients_and_schedule(federation):
    assert federation.clients == list(toy_clients.CLIENTS)
    local = federation.recipe.local
    assert (federation.setup.schedule.steps, federation.setup.schedule.lr) == (
        local.rectify_steps, local.rectify_lr,
    )  # fmt: skip


def test_fedavg_as_an_object_is_fedavg_by_name(federation, home):
    run = federation.run(fedavg(federation.setup), home / "same", name="mine", progress=False)
    assert run.methods == ["fedavg", "mine"]
    ours, theirs = (
        read_adapter(run.folder / place) for place in ("global", "baselines/fedavg/global")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    named, mine = run.metrics()
    assert {**mine, "method": ""} == {**named, "method": ""}
    assert run.recipe.federation.algorithm == "custom:mine"
    assert "mine" in run.report.read_text(encoding="utf-8")


def test_the_algorithm_of_the_docs_is_the_one_that_takes_half_steps(federation, home, monkeypatch):
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    [block] = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
               if "def half_steps" in text]  # fmt: skip
    monkeypatch.chdir(home)
    (home / "my.toml").write_bytes((home / "recipe.toml").read_bytes())
    exec(block, names := {"fedsdr": fedsdr})
    run = federation.run(half_steps(federation.setup), home / "ours", name="half", progress=False)
    theirs, ours = (read_adapter(each.folder / "global") for each in (names["run"], run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_composed_algorithm_has_the_recipes_other_choices(federation, home):
    """Half of FedAvg's step is FedAvgM of the same rate, in two streams as in one."""
    recipe = fedsdr.load_recipe(
        home / "recipe.toml",
        {
            "federation.targets": "two_stream",
            "federation.compression": "fp16",
            "federation.algorithm": "fedavgm",
            "options.fedavgm": {"lr": 0.5, "momentum": 0.0},
        },
    )
    run_recipe(recipe, home / "named", silent_reporter())
    two = fedsdr.Federation(recipe, progress=False)
    run = two.run(half_steps(two.setup), home / "composed", name="half", progress=False)
    assert run.methods == ["fedsdr+half+fp16"]
    ours, theirs = (read_adapter(home / folder / "global") for folder in ("composed", "named"))
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor)
    assert "client:anna" in run.models  # S stays with its client


def test_an_algorithm_that_is_not_composed_chooses_its_own_targets(home):
    asked: list[str] = []

    def stubborn(setup: Setup) -> Algorithm:
        def client(
            shared: Adapter, state: ClientState, fit: Fit, round: Round
        ) -> tuple[Update, ClientState]:
            stage = Stage(
                "rectify", trains="R", schedule=setup.schedule, shared=shared, targets="distilled"
            )
            asked.append(stage.targets)
            return client_update(shared, fit(stage)), state

        return fedavg(setup)._replace(client=client)

    recipe = fedsdr.load_recipe(home / "recipe.toml", {"federation.targets": "mixed"})
    mixed = fedsdr.Federation(recipe, progress=False)
    algorithm = stubborn(mixed.setup)
    run = mixed.run(algorithm, home / "stubborn", name="stubborn", composed=False, progress=False)
    assert run.methods == ["mixed+stubborn"]
    assert {*asked} == {"distilled"}
    assert (run.folder / "clients" / "anna" / "rewrites.jsonl").exists()


def test_an_interrupted_run_goes_on(federation, home):
    class StopError(Exception):
        pass

    def stopping(setup: Setup) -> Algorithm:
        inner = half_steps(setup)

        def finish(state: ServerState, fold: Any, round: Round) -> ServerState:
            if round.number == 2:
                raise StopError
            return inner.finish(state, fold, round)

        return inner._replace(finish=finish)

    def run(algorithm: Algorithm, out: Path, resume: bool = False) -> None:
        federation.run(algorithm, out, name="half", resume=resume, progress=False)

    with pytest.raises(StopError):
        run(stopping(federation.setup), home / "stopped")
    with pytest.raises(fedsdr.UserError, match="nothing is written over"):
        run(half_steps(federation.setup), home / "stopped")
    run(half_steps(federation.setup), home / "stopped", resume=True)
    run(half_steps(federation.setup), home / "whole")
    ours, theirs = (read_adapter(home / folder / "global") for folder in ("stopped", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("algorithm", "name", "said"),
    [
        (fedavg, "mine", "is not an Algorithm: give what a factory returns"),
        (None, "fedprox", "name = 'fedprox': use letters"),
        (None, "fedsdr", "name = 'fedsdr': use letters"),
        (None, "my own", "name = 'my own': use letters"),
    ],
)
def test_what_cannot_be_run_is_refused(federation, tmp_path, algorithm, name, said):
    algorithm = algorithm or fedavg(federation.setup)
    with pytest.raises(fedsdr.UserError, match=said):
        federation.run(algorithm, tmp_path / "out", name=name)
    assert not (tmp_path / "out").exists()


def test_noise_is_for_algorithms_that_are_composed(home, tmp_path):
    noisy = {"privacy.mode": "central", "privacy.noise_seed": 1}
    recipe = fedsdr.load_recipe(home / "recipe.toml", noisy)
    private = fedsdr.Federation(recipe, progress=False)
    with pytest.raises(fedsdr.UserError, match="needs composed = True"):
        private.run(fedavg(private.setup), tmp_path / "out", name="mine", composed=False)
    run = private.run(fedavg(private.setup), tmp_path / "out", name="mine", progress=False)
    assert run.metrics()[0]["epsilon"] > 0


def test_its_recipe_says_that_a_program_is_needed(federation, home, tmp_path):
    folder = tmp_path / "out"
    federation.run(half_steps(federation.setup), folder, name="half", progress=False)
    assert fedsdr.open_run(folder).methods == ["fedavg", "half"]
    with pytest.raises(fedsdr.UserError, match=r"'custom:half' is an object of a Python program"):
        fedsdr.check(folder / "recipe.toml")
    card = fedsdr.open_run(folder).export(tmp_path / "model", progress=False)
    assert card.model == "global"
    assert "custom:half" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]
