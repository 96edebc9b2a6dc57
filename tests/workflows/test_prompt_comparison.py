"""`fedsdr distill --prompts`: prompts compared on the same records of a tiny model's clients."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedsdr
from fedsdr.cli.main import app
from fedsdr.distillation.prompts import FAULTS
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.sections.prompts import shipped_prompts
from support import tiny_recipe

OWN = "{instruction} {response} the"  # the prompt of the recipe below


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    distill = {"checks": ["empty"], "temperature": 1.0, "prompt": OWN}
    federation = {"rounds": 1, "targets": "distilled"}
    return tiny_recipe.write_recipe(tmp_path, federation=federation, distill=distill)


def invoke(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_all_shipped_prompts_are_compared_with_the_recipes_own(recipe, tmp_path):
    code, said, _ = invoke("distill", recipe, "--prompts", "--pilot", "2")
    assert code == 0
    assert f"{1 + len(shipped_prompts())} prompts on the same 6 records of 3 client(s)" in said
    for name in ("recipe", *shipped_prompts()):
        assert f"\n{name}:\n" in said
    assert "\n    ### Reference Answer:\n" in said
    best = said.partition("best: ")[2].partition(",")[0]
    rows = re.findall(r"^ *(\w+) +\d+ %", said, re.MULTILINE)
    assert rows[0] == best
    assert sorted(rows) == sorted(["recipe", *shipped_prompts()])
    assert not (tmp_path / "cache").exists()


def test_what_it_says_to_write_is_the_best_prompt(recipe, tmp_path):
    """Run with the line that is printed, the recipe has the prompt that was measured."""
    own = tmp_path / "mine.toml"
    own.write_text('a = "{response} {instruction}"\nb = "sdft"\n', encoding="utf-8")
    code, said, _ = invoke("distill", recipe, own, "--prompts", "--pilot", "3")
    assert code == 0
    written = tomllib.loads(said.rpartition("into the recipe:")[2])["distill"]["prompt"]
    compared = fedsdr.compare_prompts(recipe, own, 3, progress=False)
    assert [trial.name for trial in compared.trials] == ["recipe", "a", "b"]
    changed = load_recipe(recipe, {"distill.prompt": written})
    assert changed.distill.prompt == compared.best.text
    assert compared.best.text in (OWN, "{response} {instruction}", shipped_prompts()["sdft"])


def test_every_prompt_rewrites_the_same_records_and_twice_gives_the_same(recipe):
    prompts = {"a": "{response} {instruction}", "again": "{response} {instruction}"}
    compared = fedsdr.compare_prompts(recipe, prompts, records=99, progress=False)
    own, first, second = compared.trials
    assert own.records == first.records == 22  # 99 a client, or all that it has
    assert first._replace(name="", seconds=0) == second._replace(name="", seconds=0)
    assert first.faults.keys() == set(FAULTS)
    assert (own.tokens, own.words) != (first.tokens, first.words)


def test_the_recipes_own_prompt_keeps_its_name(recipe):
    changed = load_recipe(recipe, {"distill.prompt": "brief"})
    compared = fedsdr.compare_prompts(changed, {"mine": OWN}, 1, progress=False)
    assert [trial.name for trial in compared.trials] == ["brief", "mine"]
    assert tomllib.loads(compared.toml)["distill"]["prompt"] in ("brief", OWN)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["FILE"], ["mine.toml, is for --prompts", "remove the file"]),
        (["FILE", "--prompts"], ["mine.toml: a = ", "must contain {instruction}"]),
        (["GONE", "--prompts"], ["cannot read the prompts", "gone.toml"]),
        (["--prompts", "--out", "out"], ["--prompts compares", "remove --out"]),
        (["--prompts", "--report"], ["--report is for --out"]),
        (["--prompts", "--pilot", "0"], ["on 0 records", "1 or more"]),
        (["--prompts", "--set", "federation.targets=raw"], ["no method", "rewrites"]),
    ],
)
def test_mistakes(recipe, tmp_path, args, parts):
    (tmp_path / "mine.toml").write_text("a = '{response}'", encoding="utf-8")
    places = {"FILE": tmp_path / "mine.toml", "GONE": tmp_path / "gone.toml"}
    code, said, error = invoke("distill", recipe, *(places.get(arg, arg) for arg in args))
    assert (code, said) == (2, "")
    assert all(part in error for part in parts), error
    assert not (tmp_path / "out").exists()
