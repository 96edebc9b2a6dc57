"""Names that become folders stay where they belong, links are not followed out of a folder."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.core import files
from fedsdr.core.client_names import SAFE_NAME, client_folder_name
from fedsdr.core.errors import UserError
from fedsdr.core.layout import RECIPE_FILE
from fedsdr.core.progress import silent_reporter
from fedsdr.data.partition import build_clients
from fedsdr.deploy.sites.folder import ROSTER, load_site
from fedsdr.recipe.load import load_recipe, parse_recipe
from fedsdr.recipe.methods import method_folders, resolve_methods
from fedsdr.recipe.sections.data import Data, Source, Split
from fedsdr.workflows.run import run_recipe
from fedsdr.workflows.run_folder import check_folder, claim_folder, locked_folder
from support import tiny_recipe
from support.fuzzing import fuzzed, value_or_user_error

NAMES = [
    "../x",
    "/x",
    "..",
    ".",
    "a/b",
    "a\\b",
    "a\0b",
    "a\n",
    "",
    "x" * 300,
    "\uff0e\uff0e",
    "a\u2215b",
]
LAB = {"model": {"path": "lab"}}


@fuzzed
@given(
    categories=st.lists(
        st.text(max_size=6) | st.sampled_from([*NAMES, "CON", "a.", "..a", "nul.txt"]),
        min_size=1,
        max_size=3,
    )
)
def test_a_client_made_of_a_category_is_a_folder_of_its_own(tmp_path, categories):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "response": "b", "category": each} for each in categories]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(sources=(Source(path=str(path)),), split=Split(by="column"))
    clients = value_or_user_error(tmp_path, lambda: build_clients(data, 0)) or []
    for client in clients:
        folder = client_folder_name(client.name)
        assert SAFE_NAME.fullmatch(folder)
        assert (tmp_path / folder).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize("name", NAMES)
def test_a_roster_names_no_folder_elsewhere(tmp_path, name):
    (tmp_path / ROSTER).write_text(json.dumps({"unsigned": [name]}))
    (tmp_path / RECIPE_FILE).write_text("model.path = 'lab'\n")
    with pytest.raises(UserError, match=ROSTER):
        load_site(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_names_no_folder_elsewhere(tmp_path, name):
    with pytest.raises(UserError, match="is not known"):
        resolve_methods(parse_recipe({**LAB, "baselines": [name]}))
    with pytest.raises(UserError, match="variants"):
        resolve_methods(parse_recipe({**LAB, "baselines": [name], "variants": {name: {}}}))


def test_every_method_has_a_folder_below_the_runs(tmp_path):
    recipe = parse_recipe({**LAB, "baselines": ["base", "fedsd+fedadam", "fedsdr+flora"]})
    for name, folder in method_folders(recipe, tmp_path).items():
        assert re.fullmatch(r"[a-z_+]+2?", name)
        assert folder == tmp_path or folder.parent == tmp_path / "baselines"


# --- Links


def test_a_run_folder_may_be_a_link(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(tiny_recipe.write_recipe(tmp_path, federation={"rounds": 1}))
    real, link = tmp_path / "disk" / "run", tmp_path / "link"
    real.mkdir(parents=True)
    link.symlink_to(real)
    run_recipe(recipe, link, silent_reporter())
    assert link.is_symlink()
    assert (real / "report.html").exists()
    assert sorted(path.name for path in real.parent.iterdir()) == ["run"]
    with pytest.raises(UserError, match="nothing is written over"):
        check_folder(link, recipe, resume=False)


def test_tidying_a_run_folder_does_not_follow_links_out_of_it(tmp_path):
    outside, out = tmp_path / "outside", tmp_path / "out"
    leftover = f".metrics.jsonl.{2**31 - 1}.tmp"
    for folder in (outside, out):
        folder.mkdir()
        (folder / leftover).write_text("half")
    (out / "link").symlink_to(outside)
    (out / f".to.txt.{2**31 - 1}.tmp").symlink_to(outside / leftover)
    files.recover_folder(out)
    assert [path.name for path in out.iterdir()] == ["link"]
    assert (outside / leftover).read_text() == "half"


def test_a_link_that_lies_in_a_files_place_is_replaced_and_not_followed(tmp_path):
    outside, out = tmp_path / "outside.txt", tmp_path / "out"
    outside.write_text("not ours")
    out.mkdir()
    for name in (RECIPE_FILE, "secret.json"):
        (out / name).symlink_to(outside)
    files.write_json(out / "secret.json", 5, private=True)
    files.write_text(out / RECIPE_FILE, "ours")
    assert outside.read_text() == "not ours"
    assert not (out / "secret.json").is_symlink()
    assert (out / "secret.json").stat().st_mode & 0o777 == 0o600


def test_a_link_to_itself_is_no_run_folder(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(UserError, match="give another --out"), locked_folder(link):
        pass


OF_RUNS = (
    "metrics.jsonl", "recipe.toml", "global/adapter.safetensors", "clients/anna/state.safetensors",
    "baselines/fedavg/result.json", "baselines/fedavg/clients/anna/a/b.json",
    "seed-3/summary.json", "seed-3/baselines/fedavg/global/adapter_config.json",
)  # fmt: skip
OF_OTHERS = (
    "benchmarks/summary.json", "judge/answers.json", "judge.json", "export/model.safetensors",
    "baselines/fedavg/benchmarks/summary.json", "seed-3/benchmarks/gsm8k.json", "exported",
)  # fmt: skip


def test_a_run_that_goes_on_tidies_its_own_files_alone(tmp_path):
    """Evaluations, judges and exports may be at work in a run's folder, on other machines too."""
    out, dead = tmp_path / "out", 2**31 - 1

    def leftover(name: str) -> Path:
        path = out / name
        return path.with_name(f".{path.name}.{dead}.tmp")

    for name in (*OF_RUNS, *OF_OTHERS):
        leftover(name).parent.mkdir(parents=True, exist_ok=True)
        leftover(name).touch()
    claim_folder(out, parse_recipe(LAB))
    assert [name for name in OF_RUNS if leftover(name).exists()] == []
    assert [name for name in OF_OTHERS if not leftover(name).exists()] == []
