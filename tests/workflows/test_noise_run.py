"""Differential privacy and compression in whole runs: epsilon in the summary, noise that a resumed
run repeats, a seed that its owner alone can read, fewer bytes."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedsdr.algorithms.accounting import single_epsilon
from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.federation import rounds
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.methods import resolve_methods
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.workflows.method import noise_secret
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe, toy_clients

NOISY = {
    "federation.targets": "two_stream",
    "federation.participation": 0.6,
    "privacy.mode": "central",
    "privacy.clip": 0.5,
    "privacy.noise_multiplier": 1.5,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return load_recipe(tiny_recipe.write_recipe(tmp_path_factory.mktemp("noise")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(out / "global" / "adapter_model.safetensors"))


def log(out: Path) -> list[Any]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", ["central", "local"])
def test_the_summary_states_the_epsilon_of_whoever_took_part_most(recipe, tmp_path, mode):
    out = tmp_path / "out"
    summary = run_recipe(
        override_recipe(recipe, {**NOISY, "privacy.mode": mode}), out, silent_reporter()
    )
    cohorts = [row["clients"] for row in log(out)[1:]]
    most = max(sum(client in cohort for cohort in cohorts) for client in toy_clients.CLIENTS)
    spent = single_epsilon(1.5, most, 1e-5, local=mode == "local")
    assert summary["methods"]["fedsdr"]["epsilon"]["mean"] == pytest.approx(spent)
    assert spent > 0
    assert "Privacy loss" in (out / "report.html").read_text()
    assert all("loss/rectify" not in row["train"] for row in log(out)[1:]), "losses would leak"


def test_noise_that_is_no_noise_promises_nothing(recipe, tmp_path):
    quiet = override_recipe(recipe, {**NOISY, "privacy.noise_multiplier": 0.0})
    assert (
        "epsilon" not in run_recipe(quiet, tmp_path / "out", silent_reporter())["methods"]["fedsdr"]
    )


def test_noise_is_secret_and_its_seed_the_owners_alone(recipe, tmp_path):
    """Two runs of one recipe differ by their noise, unless the recipe fixes it for simulation."""
    for name, seed in (("a", None), ("b", None), ("c", 5), ("d", 5)):
        fixed = {} if seed is None else {"privacy.noise_seed": seed}
        run_recipe(override_recipe(recipe, {**NOISY, **fixed}), tmp_path / name, silent_reporter())
    found = {name: weights(tmp_path / name) for name in "abcd"}
    assert any(not torch.equal(found["a"][key], found["b"][key]) for key in found["a"])
    assert all(torch.equal(found["c"][key], found["d"][key]) for key in found["c"])
    secret = tmp_path / "a" / "noise.json"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert not (tmp_path / "c" / "noise.json").exists()
    text = secret.read_text()
    others = [p for p in (tmp_path / "a").rglob("*") if p.is_file() and p != secret]
    assert all(text.strip().encode() not in path.read_bytes() for path in others)


def test_a_resumed_run_adds_the_noise_that_it_had_added(recipe, tmp_path, monkeypatch):
    """Fresh noise on an update that was sent before would be a second release of it."""
    noisy, out = override_recipe(recipe, NOISY), tmp_path / "out"
    real, calls = rounds.save_checkpoint, []

    def die_once(folder: Path, round: int, state: Any) -> None:
        calls.append((round, state.adapter))
        if round == 2 and len(calls) == 3:
            raise KeyboardInterrupt
        real(folder, round, state)

    monkeypatch.setattr(rounds, "save_checkpoint", die_once)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(noisy, out, silent_reporter())
    run_recipe(noisy, out, silent_reporter(), resume=True)
    first, again = (adapter for round, adapter in calls if round == 2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    method = resolve_methods(noisy)[-1].within(out)
    assert noise_secret(method) == noise_secret(method)


@pytest.mark.parametrize("held", [2**62, "ab" * 31, "ab" * 33, "zz" * 32, None])
def test_a_run_does_not_go_on_with_noise_that_can_be_found(recipe, tmp_path, held):
    """Nor with new noise: an update may have been sent with the old one."""
    files.write_json(tmp_path / "noise.json", held)
    with pytest.raises(UserError, match=r"noise.json holds no secret .* begin another one"):
        noise_secret(resolve_methods(override_recipe(recipe, NOISY))[-1].within(tmp_path))
    assert files.read_json(tmp_path / "noise.json") == held


@pytest.mark.parametrize(("codec", "share"), [("fp16", 0.5), ("int8", 0.7), ("topk", 0.25)])
def test_compressed_updates_are_counted_as_they_are_sent(recipe, tmp_path, codec, share):
    plain = override_recipe(recipe, {"federation.targets": "raw"})
    run_recipe(plain, tmp_path / "plain", silent_reporter())
    run_recipe(
        override_recipe(plain, {"federation.compression": codec}),
        tmp_path / codec,
        silent_reporter(),
    )
    sent = {
        n: [row["train"]["bytes_up"] for row in log(tmp_path / n)[1:]] for n in ("plain", codec)
    }
    assert all(0 < a <= share * b for a, b in zip(sent[codec], sent["plain"], strict=True))
    down = {n: log(tmp_path / n)[1]["train"]["bytes_down"] for n in ("plain", codec)}
    assert down[codec] == down["plain"]
