"""Folders of runs: what --resume goes on from, what it refuses, and what it leaves as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsdr.algorithms.contract import Personal
from fedsdr.core.adapters import Adapter
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.export.write import ExportChoice, export_model
from fedsdr.federation import rounds
from fedsdr.federation.in_process import InProcessEngine
from fedsdr.recipe.load import override_recipe, parse_recipe, to_toml
from fedsdr.recipe.methods import named_recipe, resolve_methods
from fedsdr.workflows import run as runs
from fedsdr.workflows import summary
from fedsdr.workflows.finished import open_finished
from fedsdr.workflows.method import pooled_method
from fedsdr.workflows.prepare import PreparedRun
from fedsdr.workflows.run import compare_seeds, run_demo, run_recipe, say_kept
from fedsdr.workflows.run_folder import check_folder
from support import toy_clients
from support.finished_runs import BASELINES, folder_contents, read_json, same_weights

# PEFT asks for an attribute that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def test_resuming_a_finished_run_does_nothing_at_all(finished, recipe, monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PreparedRun, "load", refuse)
    before = folder_contents(finished)
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    chosen = override_recipe(recipe, {"baselines": BASELINES})
    summary = run_recipe(chosen, finished, silent_reporter(), resume=True)
    assert summary == read_json(finished / "summary.json")
    assert folder_contents(finished) == before
    assert times == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_resume_in_a_new_folder_begins(recipe, tmp_path):
    short = override_recipe(recipe, {"federation.rounds": 0})
    run_recipe(short, tmp_path / "out", silent_reporter(), resume=True)
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_kill_before_the_recipe_was_in_place_leaves_the_folder_usable(recipe, tmp_path, resume):
    (tmp_path / ".recipe.toml.123.tmp").write_text("seed = ")
    run_recipe(
        override_recipe(recipe, {"federation.rounds": 0}),
        tmp_path,
        silent_reporter(),
        resume=resume,
    )
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"local.rectify_lr": 0.03}, ["local.rectify_lr"]),
        ({"seed": 1, "lora.rank": 3}, ["lora.rank", "seed"]),
        ({"baselines": ["base"]}, ["baselines"]),
        ({"evaluate.limit": 3}, ["evaluate.limit"]),
    ],
)
def test_another_recipe_cannot_resume_a_run(finished, recipe, changes, keys):
    before = folder_contents(finished)
    other = override_recipe(recipe, {"baselines": BASELINES, **changes})
    with pytest.raises(UserError, match="another recipe") as caught:
        run_recipe(other, finished, silent_reporter(), resume=True)
    assert f"differ in {', '.join(keys)})" in str(caught.value)
    assert folder_contents(finished) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.name", "x"),
        ("deployment.round_seconds", 5.0),
        ("evaluate.every", 1),
        ("evaluate.personal", False),
        ("evaluate.benchmarks", ["crass"]),
        ("evaluate.benchmark_every", 1),
    ],
)
def test_what_changes_no_adapter_and_no_score_may_differ_at_a_resume(finished, recipe, key, value):
    check_folder(
        finished, override_recipe(recipe, {"baselines": BASELINES, key: value}), resume=True
    )


def test_where_claims_are_read_off_curves_their_points_stay(tmp_path):
    lab = parse_recipe({"model": {"path": "lab"}})
    (tmp_path / "recipe.toml").write_text(to_toml(lab))
    check_folder(tmp_path, override_recipe(lab, {"evaluate.personal": False}), resume=True)
    with pytest.raises(UserError, match=r"another recipe .*evaluate.every"):
        check_folder(tmp_path, override_recipe(lab, {"evaluate.every": 1}), resume=True)


def test_methods_that_were_judged_otherwise_are_named_at_a_resume(finished, recipe, monkeypatch):
    changes = {"baselines": BASELINES, "evaluate.benchmarks": ["crass"]}
    for changed, names in ((changes, "fedavg"), ({"baselines": BASELINES}, None)):
        said: list[str] = []
        other = override_recipe(recipe, changed)
        reporter = silent_reporter()
        monkeypatch.setattr(reporter, "say", said.append)
        say_kept(resolve_methods(other), finished, reporter)
        assert len(said) == (names is not None)
        if names:
            assert "had done all rounds before evaluate.benchmarks was changed" in said[0]
            assert names in said[0]
            assert "fedsdr eval" in said[0]


def test_a_finished_run_reads_no_data_again(finished, recipe, monkeypatch):
    monkeypatch.setattr(runs, "prepare_methods", broken)
    summary = run_recipe(
        override_recipe(recipe, {"baselines": BASELINES}), finished, silent_reporter(), resume=True
    )
    assert summary == read_json(finished / "summary.json")


def broken(*_: Any) -> None:
    raise MemoryError("put in by the test")


def last_one_breaks(due: Callable[..., Any]) -> Callable[..., Any]:
    def evaluations(deployed: Adapter, periodic: Any, round: int, rounds: int) -> Any:
        return broken() if round == rounds else due(deployed, periodic, round, rounds)

    return evaluations


@pytest.mark.parametrize("where", ["the global model", "the clients' models", "the report"])
def test_a_crash_in_the_last_evaluation_costs_no_model(
    recipe, finished, tmp_path, monkeypatch, where
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if where == "the global model":
            patch.setattr(rounds, "_evaluations", last_one_breaks(rounds._evaluations))
        elif where == "the clients' models":
            patch.setattr(InProcessEngine, "judge_personal", broken)
        else:
            patch.setattr(summary, "write_report", broken)
        with pytest.raises(MemoryError):
            run_recipe(recipe, out, silent_reporter())
    models = open_finished(out)
    assert models.model_names() == ["base", "global", *(f"client:{c}" for c in toy_clients.CLIENTS)]
    export_model(models, ExportChoice("client:anna"), tmp_path / "model", silent_reporter())
    folders = ["global", *(f"clients/{client}/private" for client in toy_clients.CLIENTS)]
    assert all(same_weights(out / each, finished / each) for each in folders)
    run_recipe(
        override_recipe(recipe, {"evaluate.personal": False}), out, silent_reporter(), resume=True
    )
    assert all(same_weights(out / each, finished / each) for each in folders)
    result = read_json(out / "result.json")
    assert ("personal_loss" in result) == (where == "the report")
    assert result["loss"] == read_json(finished / "result.json")["loss"]


def test_a_run_killed_between_two_clients_adapters_is_not_trained(
    recipe, finished, tmp_path, monkeypatch
):
    out, left = tmp_path / "out", ["anna"]
    written = InProcessEngine.write_personal

    def killed(engine: InProcessEngine, client: str, own: Personal) -> None:
        if client not in left:
            raise KeyboardInterrupt
        written(engine, client, own)

    with monkeypatch.context() as patch:
        patch.setattr(InProcessEngine, "write_personal", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, out, silent_reporter())
    assert (out / "clients" / "anna" / "private").exists()
    with pytest.raises(UserError, match=r"not finished .*--resume"):
        open_finished(out)
    run_recipe(recipe, out, silent_reporter(), resume=True)
    names = ["base", "global", *(f"client:{c}" for c in toy_clients.CLIENTS)]
    assert open_finished(out).model_names() == names


def test_a_model_under_noise_is_not_handed_on_before_its_epsilon_is_known(
    recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(InProcessEngine, "judge_personal", broken)
    privacy = {"privacy.mode": "local", "privacy.noise_multiplier": 1.0, "federation.rounds": 1}
    with pytest.raises(MemoryError):
        run_recipe(override_recipe(recipe, privacy), tmp_path / "out", silent_reporter())
    with pytest.raises(UserError, match="its epsilon is known: go on with"):
        export_model(
            open_finished(tmp_path / "out"), ExportChoice(), tmp_path / "model", silent_reporter()
        )
    assert not (tmp_path / "model").exists()


def test_a_run_does_not_go_on_with_other_data(recipe, tmp_path):
    short = override_recipe(recipe, {"federation.rounds": 0})
    run_recipe(short, tmp_path / "out", silent_reporter())
    (tmp_path / "out" / "report.html").unlink()  # as if it had been killed before its end
    source = Path(recipe.data.sources[0].path)
    before = source.read_text()
    try:
        source.write_text("".join(before.splitlines(keepends=True)[:-1]))
        with pytest.raises(UserError, match="the data have changed since"):
            run_recipe(short, tmp_path / "out", silent_reporter(), resume=True)
    finally:
        source.write_text(before)
    run_recipe(short, tmp_path / "out", silent_reporter(), resume=True)
    assert (tmp_path / "out" / "report.html").exists()


def test_a_resumed_comparison_clears_what_a_killed_one_left(recipe, tmp_path):
    short = override_recipe(recipe, {"federation.rounds": 0})
    compare_seeds(short, [0], tmp_path / "out", silent_reporter())
    left = tmp_path / "out" / ".summary.json.123.tmp"
    left.write_text("{")
    compare_seeds(short, [0], tmp_path / "out", silent_reporter(), resume=True)
    assert not left.exists()


@pytest.mark.parametrize(
    ("changes", "own", "other"),
    [
        ({"federation.targets": "raw"}, "fedavg", "fedsdr"),
        ({"federation.targets": "two_stream"}, "fedsdr", "fedavg"),
        ({"method": "fedsdr2", "rehearsal.share": 0.0}, "fedsdr2", "fedsdr"),
    ],
)
def test_only_a_recipe_of_the_papers_two_streams_stands_for_fedsdr(
    recipe, tmp_path, monkeypatch, changes, own, other
):
    asked = []
    monkeypatch.setattr(summary, "judge_claims", lambda runs, fedsdr, curves: asked.append(fedsdr))
    short = override_recipe(recipe, {"federation.rounds": 1, "baselines": [other], **changes})
    assert run_recipe(short, tmp_path / "out", silent_reporter())["own"] == own
    assert asked == ["fedsdr"]


def test_a_resumed_run_remembers_when_it_began(recipe, tmp_path):
    short = override_recipe(recipe, {"federation.rounds": 0})
    run_recipe(short, tmp_path / "out", silent_reporter())
    page = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    environment = read_json(tmp_path / "out" / "environment.json") | {"started": "long ago"}
    (tmp_path / "out" / "environment.json").write_text(json.dumps(environment))
    assert "<dt>Duration</dt>" in page
    run_recipe(short, tmp_path / "out", silent_reporter(), resume=True)
    assert read_json(tmp_path / "out" / "environment.json") == environment
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<dt>Duration since resumed</dt>" in page


@pytest.mark.parametrize(("share", "steps"), [(1.0, 3), (0.5, 2), (0.1, 1)])
def test_centralised_training_takes_as_many_steps_as_all_participants(recipe, share, steps):
    late = {"federation.late": 0.4, "federation.late_round": 2}
    some = override_recipe(
        named_recipe("central", recipe), {"federation.participation": share, **late}
    )
    pooled = pooled_method(resolve_methods(some)[-1], clients=3).recipe
    assert pooled.local.rectify_steps == steps * some.local.rectify_steps
    assert (pooled.federation.participation, pooled.federation.late) == (1, 0)


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_anything_in_it_is_refused_and_untouched(recipe, tmp_path, resume):
    (tmp_path / "notes.txt").write_text("mine")
    for start in (run_recipe, lambda *args: compare_seeds(args[0], [0], *args[1:])):
        with pytest.raises(UserError, match="is not empty and nothing is written over") as caught:
            start(recipe, tmp_path, silent_reporter(), resume)
        assert "--resume" not in str(caught.value)
        assert folder_contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_run_is_not_written_over_without_resume(finished, recipe):
    before = folder_contents(finished)
    with pytest.raises(UserError, match="go on with it by --resume, or give another --out"):
        run_recipe(override_recipe(recipe, {"baselines": BASELINES}), finished, silent_reporter())
    assert folder_contents(finished) == before


def test_the_demo_replaces_no_run_but_its_own(finished):
    before = folder_contents(finished)
    with pytest.raises(UserError, match="another recipe"):
        run_demo(finished, [0], silent_reporter())
    assert folder_contents(finished) == before


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"lora.targets": ["nope"]}, "lora.targets names 'nope'"),
        ({"baselines": ["base", "base"]}, "would run 'base' twice"),
        ({"baselines": ["fedsdr"]}, "would run 'fedsdr' twice"),
        ({"baselines": ["fed"]}, "baselines names 'fed'"),
        ({"variants": {"v": {"lora": {"rank": 3}}}}, "variants.v changes lora.rank"),
        ({"variants": {"fedavg": {}}}, "variants.fedavg has the name of a method"),
        ({"variants": {"v": {"seed": 3}}}, "variants.v changes seed"),
        ({"variants": {"v": {"evaluate": {"limit": 3}}}}, "variants.v changes evaluate.limit"),
        ({"variants": {"v": {"local": {"lr": 3}}}}, "local.lr: unknown key"),
        ({"model.max_length": 1}, "no record fits into 1 tokens"),
    ],
)
def test_recipes_that_are_refused_leave_no_folder(recipe, tmp_path, changes, part):
    with pytest.raises(UserError) as caught:
        run_recipe(override_recipe(recipe, changes), tmp_path / "out", silent_reporter())
    assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_run_can_be_moved_and_reported_again(finished, tmp_path):
    from fedsdr.report.html import write_report

    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    (moved / "report.html").unlink()
    write_report(moved)
    assert (moved / "report.html").stat().st_size > 1000
