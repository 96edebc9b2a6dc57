"""What leaves a client: numbers and what is shared, never S or a personal adapter, and no text
but samples.

The in-process engine simulates the clients, so all files lie in one folder; what stands in for a
server's disk is everything outside `clients/`.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from fedsdr.algorithms.contract import ClientState, Update
from fedsdr.cli.main import app
from fedsdr.core.adapters import Adapter, Private, unwrap_private
from fedsdr.distillation import rewrite
from fedsdr.federation.in_process import InProcessEngine
from fedsdr.generation.sampling import Job, Stop, stop_tokens
from fedsdr.recipe.load import load_recipe, override_recipe, to_toml
from fedsdr.training.store import ClientStore
from support import tiny_recipe, toy_clients
from support.byte_search import occurs, raw, windows

ASKED, ANSWERED, REWRITTEN = "zanzibar", "quetzal", "xylophone"  # in every record of anna's
# Rows of anna's that cannot be learnt, each for a reason of its own.
SPOILT = [
    f'{{"prompt": "{ASKED} red", "response": "{ANSWERED} blue',
    f'{{"prompt": ["{ASKED}"], "response": "{ANSWERED}"}}',
    f'{{"prompt": "{ASKED}", "response": ""}}',
    f'{{"prompt": "{ASKED}", "response": "{ANSWERED}", "response": "{ANSWERED} red"}}',
    f'{{"prompt": "{ASKED}", "response": "{ANSWERED} \\ud800"}}',
    f'"{ASKED} {ANSWERED}"',
]
PERSONAL = ["local", "fedsa", "fedper", "feddpa", "fedsdr+ditto", "fedsdr2"]
A_NUMBERS = 2 * 2 * (32 + 48)  # of q_proj and down_proj in two blocks: rank x inputs


class Watched(NamedTuple):
    """A finished run; by method's folder, all that clients sent and all that they ever kept.
    printed: on the terminal."""

    out: Path
    cache: Path
    printed: str
    sent: dict[Path, list[Update]]
    kept: dict[Path, list[Adapter]]

    @property
    def private(self) -> list[Adapter]:
        return [adapter for each in self.kept.values() for adapter in each]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("privacy")
    recipe_file = tiny_recipe.write_recipe(folder)
    model = tiny_recipe.write_model(folder / "model", [ASKED, ANSWERED, REWRITTEN])
    rows = [
        {"prompt": f"{ASKED} {row['prompt']}", "response": f"{row['response']} {ANSWERED}"}
        for row in tiny_recipe.client_rows(0)
    ]
    tiny_recipe.write_rows(folder / "data" / "anna.jsonl", rows)
    with (folder / "data" / "anna.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in SPOILT)
    tokenizer = tiny_recipe.word_tokenizer([*tiny_recipe.WORDS, ASKED, ANSWERED, REWRITTEN])
    written = tokenizer(REWRITTEN)["input_ids"]
    sent: dict[Path, list[Update]] = {}
    kept: dict[Path, list[Adapter]] = {}
    run_round, save = InProcessEngine.run_round, ClientStore.save

    def watch_updates(self: InProcessEngine, *args: Any) -> Iterator[Any]:
        for participant in run_round(self, *args):
            sent.setdefault(self.store.folder, []).append(participant.update)
            yield participant

    def watch_states(self: ClientStore, client: str, round: int, state: ClientState) -> None:
        kept.setdefault(self.folder, []).extend(unwrap_private(p) for p in state.private.values())
        save(self, client, round, state)

    def generate(model: Any, jobs: list[Job], stop: Stop, *options: Any) -> list[list[int]]:
        return [[*written, min(stop_tokens(stop))] for _ in jobs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        patch.setattr(InProcessEngine, "run_round", watch_updates)
        patch.setattr(ClientStore, "save", watch_states)
        patch.setitem(rewrite.GENERATORS, "fedsdr", generate)
        more = {"tracking.backends": ["tensorboard"], "local.consolidate_steps": 1}
        recipe = override_recipe(
            load_recipe(recipe_file),
            {"baselines": ["fedsd", *PERSONAL], "data.invalid": "skip", **more},
        )
        recipe_file.write_text(to_toml(recipe))
        done = CliRunner().invoke(app, ["run", str(recipe_file), "--out", str(folder / "out")])
    assert done.exit_code == 0, done.output
    assert str(model) == recipe.model.path
    return Watched(folder / "out", folder / "cache", done.output, sent, kept)


def served(out: Path) -> list[Path]:
    """The files of a run that are not in a client's own folder."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return [path for path in files if "clients" not in path.relative_to(out).parts]


def test_there_is_something_to_find(watched):
    """The search below finds S where it is, and in a server's file that someone put it into."""
    # Of fedsdr and the others, clients x rounds; fedsdr+ditto has two.
    assert len(watched.private) == (2 + len(PERSONAL)) * 3 * 3
    wanted = windows(watched.private)
    assert len(wanted) > 3000
    for client in toy_clients.CLIENTS:
        folder = watched.out / "clients" / client
        assert occurs((folder / "state-000003.safetensors").read_bytes(), wanted)
        assert occurs((folder / "private" / "adapter_model.safetensors").read_bytes(), wanted)
    row = next(iter(watched.private[-1].values()))[0]
    checkpoint = (watched.out / "checkpoint.safetensors").read_bytes()
    assert occurs(checkpoint + b"x" + raw(row), wanted)


def test_no_number_of_a_private_adapter_is_in_an_update(watched):
    """Method by method: what one keeps private another may share, and both may train alike."""
    numbers = {}
    for folder, updates in watched.sent.items():
        assert len(updates) == 3 * 3  # clients x rounds
        kept = watched.kept.get(folder, [])
        wanted = windows(kept)
        entries = {value for a in kept for t in a.values() for value in t.flatten().tolist()}
        for update in updates:
            for tensor in update.change.values():
                assert not occurs(raw(tensor), wanted)
                assert not occurs(raw(tensor.T), wanted)
            printed = {number for mean in update.metrics.values() for number in mean}
            assert not printed & (entries - {0.0})
        size = sum(tensor.numel() for tensor in updates[0].change.values())
        numbers[folder.parent.name] = size
    # R and nothing else; of fedsa its factor A, of fedper one of the two blocks.
    r = dict.fromkeys(["fedsd", "feddpa", "fedsdr+ditto", "fedsdr2", "out"], 576)
    assert numbers == {**r, "local": 0, "fedsa": A_NUMBERS, "fedper": 576 // 2}


def test_no_number_of_a_private_adapter_is_in_a_servers_file(watched):
    wanted = windows(watched.private)
    files = served(watched.out)
    names = {path.name for path in files}
    assert any("tensorboard" in path.parts for path in files)
    assert names >= {
        "checkpoint.safetensors", "adapter_model.safetensors", "metrics.jsonl", "summary.json",
        "result.json", "report.html", "distillation.json", "partition.json", "recipe.toml",
        "skipped.jsonl", "notices.json",
    }  # fmt: skip
    for path in files:
        assert not occurs(path.read_bytes(), wanted), path


def test_no_number_of_a_private_adapter_is_printed_in_a_log(watched):
    entries = {value for a in watched.private for t in a.values() for value in t.flatten().tolist()}
    printed: set[float] = set()

    def keep(text: str) -> float:
        printed.add(float(text))
        return float(text)

    for path in served(watched.out):
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            for line in lines:
                json.loads(line, parse_float=keep)
    assert len(printed) > 20
    assert not printed & (entries - {0.0})


def test_the_global_adapter_is_r_alone(watched):
    """Half of the tensors that a client trains, under names that say nothing of S."""
    from safetensors.torch import load_file

    for name in ("checkpoint.safetensors", "global/adapter_model.safetensors"):
        tensors = load_file(watched.out / name)
        population = tensors.pop("population|", None)  # of the checkpoint: one number
        assert population is None or population.shape == ()
        assert len(tensors) == 2 * 2 * 2
        assert not [key for key in tensors if "smooth" in key or "private" in key]


@pytest.mark.parametrize("word", [ASKED, ANSWERED, REWRITTEN])
def test_texts_are_in_no_servers_file_but_the_samples(watched, word):
    """distillation.json and report.html show a few pairs, as a simulation may: these are the only
    files outside `clients/` in which a record or a rewrite occurs. What is rehearsed is the base
    model's own, here the word that it always writes."""
    found = {
        str(path.relative_to(watched.out))
        for path in served(watched.out)
        if word.encode() in path.read_bytes()
    }
    learning = ("fedsd", "fedsdr+ditto", "fedsdr2")
    distilled = {f"baselines/{name}/distillation.json" for name in learning}
    rehearsed = {"baselines/fedsdr2/rehearsed.jsonl"} if word == REWRITTEN else set()
    assert found == {"distillation.json", "report.html"} | distilled | rehearsed


@pytest.mark.parametrize("word", [ASKED, ANSWERED, REWRITTEN])
def test_no_text_is_printed(watched, word):
    assert "skipped" in watched.printed
    assert word not in watched.printed


def test_rows_that_are_skipped_are_named_and_not_quoted(watched):
    """By place and reason: the texts are in the file that they come from."""
    rows = [json.loads(line) for line in (watched.out / "skipped.jsonl").read_text().splitlines()]
    assert {row["place"] for row in rows} == {f"anna.jsonl:{n}" for n in range(9, 15)}
    assert len({row["reason"] for row in rows}) == len(SPOILT)
    [notice] = [
        row for row in json.loads((watched.out / "notices.json").read_text())
        if row["kind"] == "skipped"
    ]  # fmt: skip
    for text in (json.dumps(rows), json.dumps(notice)):
        assert not [word for word in (ASKED, ANSWERED, REWRITTEN) if word in text]


def test_a_report_can_be_without_texts(watched, tmp_path):
    out = shutil.copytree(watched.out, tmp_path / "out")
    done = CliRunner().invoke(app, ["report", str(out), "--no-texts"])
    assert done.exit_code == 0
    page = (out / "report.html").read_text()
    assert "What distillation changed" in page
    assert not [word for word in (ASKED, ANSWERED, REWRITTEN) if word in page]
    CliRunner().invoke(app, ["report", str(out)])
    assert (out / "report.html").read_bytes() == (watched.out / "report.html").read_bytes()


def test_a_clients_folder_has_its_own_rewrites_and_no_others(watched):
    lines = (watched.out / "clients" / "anna" / "rewrites.jsonl").read_text().splitlines()
    assert {json.loads(line)["text"] for line in lines} == {REWRITTEN}
    for client in ("ben", "cleo"):
        text = (watched.out / "clients" / client / "rewrites.jsonl").read_text()
        assert "anna" not in text


def test_the_rewrite_cache_is_its_owners_alone(watched):
    files = [*watched.cache.iterdir()]
    assert files
    assert {path.stat().st_mode & 0o777 for path in [watched.cache, *files]} <= {0o700, 0o600}


def test_private_adapters_cannot_be_put_into_an_update(watched):
    private = Private(watched.private[0])
    for change in (private, {"a": private}, {**watched.private[0], "a": private}):
        with pytest.raises(TypeError, match="an update carries"):
            Update(change, 1)
    with pytest.raises(TypeError, match="only a float may leave"):
        private.number(lambda adapter: next(iter(adapter.values())))
    assert str(private) == "Private(8 tensors)"
    assert torch.is_tensor(next(iter(unwrap_private(private).values())))
