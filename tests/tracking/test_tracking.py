"""Tracking: what other tools read back is metrics.jsonl, once each, and no client's words."""

import json
import re
import struct
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedsdr.core.errors import UserError
from fedsdr.core.files import read_json, read_json_lines
from fedsdr.core.layout import RESULT_FILE
from fedsdr.core.progress import Reporter, silent_reporter
from fedsdr.federation import rounds
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.tracking import follow, table
from fedsdr.workflows.prepare import prepare_run
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe, toy_clients

pytestmark = [
    # MLflow asks SQLAlchemy for what newer ones deprecate.
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A setting whose trackers write into it and call nobody."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    tiny_recipe.write_recipe(tmp_path)
    return tmp_path


def recipe_of(home, *backends, **changes):
    loaded = load_recipe(home / "recipe.toml")
    return override_recipe(loaded, {"tracking.backends": list(backends), **changes})


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.jsonl as trackers name it, and the result."""
    found: dict[str, list[tuple[int, float]]] = {}
    rows = read_json_lines(folder / "metrics.jsonl")
    for row in rows:
        for kind in ("train", "eval"):
            for name, value in row.get(kind, {}).items():
                found.setdefault(f"{kind}/{name}", []).append((row["round"], value))
    for name, value in read_json(folder / RESULT_FILE).items():
        found[f"final/{name}"] = [(rows[-1]["round"], value)]
    return found


def tensorboard_of(out: Path, method: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(out / "tensorboard" / method)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def mlflow_of(folder: Path):
    from mlflow import MlflowClient

    client, id = MlflowClient(), read_json(folder / "mlflow.json")
    found = client.get_run(id)
    series = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(id, name)]
        for name in found.data.metrics
    }
    return found, series


def wandb_of(out: Path) -> dict[str, list[tuple[int, float]]]:
    """The history in W&B's offline files: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for content in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            step = record.history.step.num
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    found.setdefault(name, []).append((step, json.loads(item.value_json)))
    return found


def records(content: bytes, block: int = 32768):
    place, parts = 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in points], rel=1e-6), name


def die_once(monkeypatch, after: int):
    """The process ends after a round is committed and before its observer hears of it."""
    commit = rounds.save_checkpoint

    def save(folder, round, state):
        commit(folder, round, state)
        if round == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "save_checkpoint", save)
    return commit


@pytest.mark.parametrize("backend", ["tensorboard", "mlflow", "wandb"])
def test_a_killed_and_resumed_run_is_whole_and_says_nothing_twice(home, monkeypatch, backend):
    recipe, out = recipe_of(home, backend), home / "out"
    commit = die_once(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, out, silent_reporter())
    monkeypatch.setattr(rounds, "save_checkpoint", commit)
    run_recipe(recipe, out, silent_reporter(), resume=True)
    expected = logged(out)
    assert [step for step, _ in expected["train/bytes_up"]] == [1, 2, 3]
    if backend == "tensorboard":
        assert_same(tensorboard_of(out, "fedsdr"), expected)
    elif backend == "mlflow":
        whole, series = mlflow_of(out)
        assert [step for step, _ in series.pop("round")] == [0, 1, 2, 3]
        assert_same(series, expected)
        assert whole.info.status == "FINISHED"
        assert whole.data.params["local.rectify_lr"] == "0.02"
    else:
        final = {name for name in expected if name.startswith("final/")}
        assert_same(wandb_of(out), {k: v for k, v in expected.items() if k not in final})
    assert_no_secrets(home, out)


def assert_no_secrets(home: Path, out: Path) -> None:
    """No client's words in what trackers wrote, nor where its files lie."""
    rows = [
        row for c in toy_clients.CLIENTS for row in read_json_lines(home / "data" / f"{c}.jsonl")
    ]
    texts = {row[field].encode() for row in rows for field in row if len(row[field]) > 8}
    texts.add(b"anna.jsonl")
    places = [*out.glob("tensorboard/**/*"), *out.glob("wandb/**/*"), home / "mlflow.db"]
    for path in (p for p in places if p.is_file()):
        content = path.read_bytes()
        assert not [text for text in texts if text in content], path


def test_baselines_are_runs_beside_the_own_method(home):
    run_recipe(recipe_of(home, "auto", baselines=["fedavg"]), home / "out", silent_reporter())
    assert_same(tensorboard_of(home / "out", "fedsdr"), logged(home / "out"))
    fedavg = home / "out" / "baselines" / "fedavg"
    assert_same(tensorboard_of(home / "out", "fedavg"), logged(fedavg))


def test_none_writes_nothing(home):
    run_recipe(recipe_of(home, "none"), home / "out", silent_reporter())
    assert not (home / "out" / "tensorboard").exists()


class Breaking:
    """A backend whose disk is full from round 1 on."""

    logged = -1
    calls = 0

    def log(self, round, metrics):
        self.calls += 1
        if round == 1:
            raise OSError("no space left on device")

    def finish(self, final):
        raise AssertionError("it was to be left alone")


class Listening(Reporter):
    def __init__(self):
        super().__init__(None)
        self.said: list[str] = []

    def say(self, text):
        self.said.append(text)


@pytest.mark.parametrize("when", ["start", "log"])
def test_a_backend_that_fails_is_said_once_and_training_goes_on(home, monkeypatch, when):
    broken, reporter = Breaking(), Listening()

    def start(tracked):
        if when == "start":
            raise ConnectionError("no route to host")
        return broken

    row = table.Backend("tensorboard", lambda: None, start)
    monkeypatch.setitem(table.BACKENDS, "tensorboard", row)
    run_recipe(recipe_of(home, "tensorboard"), home / "out", reporter)
    told = [text for text in reporter.said if "tracking by tensorboard failed" in text]
    assert len(told) == 1
    assert broken.calls == (2 if when == "log" else 0)
    assert (home / "out" / RESULT_FILE).exists()


def test_parameters_name_no_client_no_file_and_no_secret(home):
    recipe = override_recipe(
        recipe_of(home, "none"), {"privacy.noise_seed": 123456, "lora.ranks": {"anna": 1}}
    )
    found = follow.tracked_parameters(recipe)
    assert found["local.rectify_steps"] == 2
    assert found["model.path"] == "model"
    text = json.dumps(found)
    assert not [word for word in ("123456", str(home), ".jsonl") if word in text]
    assert not [name for name in toy_clients.CLIENTS if re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize(
    ("backends", "said"),
    [
        (["comet"], "'comet': choose from auto, none, tensorboard, mlflow, wandb"),
        (["none", "wandb"], '"none" together with others'),
    ],
)
def test_a_wrong_choice_is_told_before_any_work(home, backends, said):
    with pytest.raises(UserError, match=said):
        prepare_run(recipe_of(home, *backends))


def test_a_missing_package_names_the_extra(home, monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fedsdr\[tracking\]'"):
        prepare_run(recipe_of(home, "mlflow"))
    assert table.choose_backends(["auto"]) == {}


def test_wandb_without_login_is_told_before_any_work(home, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    with pytest.raises(UserError, match=r"wandb login.*WANDB_MODE=offline"):
        prepare_run(recipe_of(home, "wandb"))


def test_tracking_may_change_at_a_resume(home):
    run_recipe(recipe_of(home, "none"), home / "out", silent_reporter())
    (home / "out" / "report.html").unlink()
    run_recipe(recipe_of(home, "tensorboard"), home / "out", silent_reporter(), resume=True)
