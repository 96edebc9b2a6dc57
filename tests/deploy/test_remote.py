"""A federation over a line does what one in a process does, bit by bit, and leaks nothing more."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fedsdr.algorithms.contract import ClientState
from fedsdr.core import files
from fedsdr.core.adapters import unwrap_private
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client.operations import ClientSide
from fedsdr.deploy.protocol.messages import decode_answer, decode_request
from fedsdr.deploy.protocol.signing import (
    UNSIGNED,
    message_digest,
    new_key,
    read_private,
    read_public,
    unverified_payload,
)
from fedsdr.deploy.server.admission import ServerConnection
from fedsdr.deploy.server.serve import serve_federation
from fedsdr.recipe.load import load_recipe
from fedsdr.recipe.methods import method_folders
from fedsdr.training.store import ClientStore
from fedsdr.workflows.run import run_recipe
from support import tiny_recipe, toy_clients
from support.byte_search import occurs, raw, windows
from support.message_lines import Loopback, client_sides, loopback

METHODS = [
    "base", "fedavg", "fedsd", "mixed", "local", "fedprox", "fedsdr+scaffold", "feddyn", "fedyogi",
    "fedsdr+ffa", "rolora", "fedsa", "fedper", "fedsdr+flexlora", "flora", "fedex", "fedrot",
    "fedsdr+ditto", "feddpa", "clipping", "median", "krum", "trimmed_mean", "fedsdr+int8", "topk",
    "fp16", "fedsdr+soft", "on_policy",
]  # fmt: skip
NOISE = {"noise_seed": 7, "noise_multiplier": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "central": {"privacy": {"mode": "central", **NOISE}},
    "own_noise": {"privacy": {"mode": "local", **NOISE}},
    "uncounted": {"federation": {"sample_counts": False}},
    "some": {"federation": {"participation": 0.6}},
    "late": {"federation": {"late": 0.3, "late_round": 1}},
    "consolidated": {"local": {"consolidate_steps": 1}},
}
WORDS = {"anna": "zanzibar", "ben": "quetzal", "cleo": "xylophone"}  # in every record of each
PATIENCE = {"wait_seconds": 20.0, "round_seconds": 60.0, "prepare_seconds": 60.0}


class Both(NamedTuple):
    """One recipe's runs, in process and over a line."""

    here: dict[str, Path]
    there: dict[str, Path]
    sides: dict[str, ClientSide]
    line: Loopback
    kept: dict[Path, list[ClientState]]  # by folder of a store, all that it was ever given


def setting(folder: Path) -> Path:
    """A recipe with a word in each client's records that no other text has."""
    variants = {"dp_" + name: changes for name, changes in VARIANTS.items()}
    recipe_file = tiny_recipe.write_recipe(
        folder,
        federation={"rounds": 2},
        evaluate={"every": 1},
        deployment=PATIENCE,
        options={"krum": {"malicious": 0}, "trimmed_mean": {"share": 0.34}},
        variants=variants,
    )
    text = recipe_file.read_text()
    recipe_file.write_text(f"baselines = {json.dumps([*METHODS, *variants])}\n{text}")
    tiny_recipe.write_model(folder / "model", list(WORDS.values()))
    for k, client in enumerate(toy_clients.CLIENTS):
        word = WORDS[client]
        tiny_recipe.write_rows(
            folder / "data" / f"{client}.jsonl",
            [
                {"prompt": f"{word} {row['prompt']}", "response": f"{row['response']} {word}"}
                for row in tiny_recipe.client_rows(k, 6 + 3 * k)
            ],
        )
    return recipe_file


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    kept: dict[Path, list[ClientState]] = {}
    save = ClientStore.save

    def watch(self: ClientStore, client: str, round: int, state: ClientState) -> None:
        kept.setdefault(self.folder, []).append(state)
        save(self, client, round, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder / "cache"))
        patch.setattr(ClientStore, "save", watch)
        recipe_file = setting(folder)
        recipe = load_recipe(recipe_file)
        run_recipe(recipe, folder / "here", silent_reporter())
        server = new_key(folder / "server.key")
        public = {c: new_key(folder / f"{c}.key") for c in toy_clients.CLIENTS}
        keys = {client: read_private(folder / f"{client}.key") for client in toy_clients.CLIENTS}
        sides = client_sides(recipe_file, folder / "sides", keys, read_public(server, "server"))
        line = loopback(sides)
        roster = {client: read_public(each, client) for client, each in public.items()}
        key = read_private(folder / "server.key")
        connection = ServerConnection(line, roster, key, pause=0)
        serve_federation(recipe, folder / "there", connection, silent_reporter())
        yield Both(
            *(method_folders(recipe, folder / out) for out in ("here", "there")), sides, line, kept,
        )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    found = files.read_json_lines(folder / "metrics.jsonl")
    for row in found:
        row.get("train", {}).pop("seconds", None)
    return found


@pytest.mark.parametrize("name", [*METHODS, *("dp_" + each for each in VARIANTS), "fedsdr"])
def test_every_method_gives_the_same_global_model(both, name):
    here, there = both.here[name], both.there[name]
    checkpoint = "checkpoint.safetensors"
    assert (here / checkpoint).read_bytes() == (there / checkpoint).read_bytes()
    if name == "dp_uncounted":  # there, no weight tells how many records were judged
        trained = [[row.get("train") for row in rows(each)] for each in (here, there)]
        assert trained[0] == trained[1]
        return
    result = [files.read_json(each / "result.json") for each in (here, there)]
    if name in ("dp_central", "dp_own_noise"):  # there, no score leaves a client
        mine = rows(here)
        assert all(row.pop("eval") for row in mine)
        assert mine == rows(there)
        assert result[1] == {"epsilon": result[0]["epsilon"]}
        return
    assert rows(here) == rows(there)
    assert result[0] == result[1]


@pytest.mark.parametrize("name", ["fedsdr", "fedsdr+ditto", "fedsa", "local"])
def test_every_client_keeps_the_same_models(both, name):
    for client, side in both.sides.items():
        mine = both.here[name] / "clients" / client
        [theirs] = side.folder.glob(f"runs/*/{_place(name)}clients/{client}")
        kept = sorted(path.relative_to(mine) for path in mine.rglob("*.safetensors"))
        assert kept
        assert kept == sorted(path.relative_to(theirs) for path in theirs.rglob("*.safetensors"))
        for path in kept:
            assert (mine / path).read_bytes() == (theirs / path).read_bytes()


def _place(name: str) -> str:
    return "" if name == "fedsdr" else f"baselines/{name}/"


def test_no_byte_of_a_private_adapter_is_on_the_line_or_at_the_server(both):
    """Method by method, since what one keeps private another may share."""
    for name in ("fedsdr", "fedsdr+ditto", "fedsdr+int8", "fedsa"):
        kept = [
            unwrap_private(private)
            for side in both.sides.values()
            for place in side.folder.glob(f"runs/*/{_place(name)}clients")
            for state in both.kept[place]
            for private in state.private.values()
        ]
        assert len(kept) >= 2 * 3  # of every round and client
        wanted = windows(kept)
        for asked, answered in (pair for each in both.line.traffic.values() for pair in each):
            answer = decode_answer(unverified_payload(answered))
            if answer.method == name:
                for tensor in answer.change.values():
                    assert not occurs(raw(tensor), wanted)
                    assert not occurs(raw(tensor.T), wanted)
                assert not occurs(answered, wanted)
                assert not occurs(asked, wanted)
        for path in both.there[name].rglob("*"):
            if path.is_file() and "baselines" not in path.relative_to(both.there[name]).parts:
                assert not occurs(path.read_bytes(), wanted), path


def test_the_search_would_find_a_private_adapter(both):
    side = both.sides["anna"]
    [path] = side.folder.glob("runs/*/clients/anna/private/adapter_model.safetensors")
    tensors, _ = files.read_tensors(path)
    sent = both.line.traffic[100][-1][1]
    assert occurs(sent + b"x" + raw(next(iter(tensors.values()))), windows([tensors]))


@pytest.mark.parametrize("word", WORDS.values())
def test_no_text_is_on_the_line_or_at_the_server(both, word):
    everything = [part for each in both.line.traffic.values() for pair in each for part in pair]
    assert len(everything) > 500
    assert not [part for part in everything if word.encode() in part]
    served = both.there["fedsdr"]
    assert not [p for p in served.rglob("*") if p.is_file() and word.encode() in p.read_bytes()]


def test_all_that_left_a_client_is_in_its_own_log(both):
    """Message by message, to the byte; and none but the owner may read it."""
    for node, side in zip(both.line.traffic, both.sides.values(), strict=True):
        sent = [unverified_payload(answer) for _, answer in both.line.traffic[node]]
        logged = files.read_json_lines(side.audit.path)
        assert [row["bytes"] for row in logged] == [len(payload) for payload in sent]
        for row, payload in zip(logged, sent, strict=True):
            answer = decode_answer(payload)
            assert row["operation"] == answer.operation
            assert row["tensors"].keys() == answer.change.keys()
            assert row["metrics"] == sorted(answer.metrics)
            assert row["digest"] == message_digest(payload)
        assert side.audit.path.stat().st_mode & 0o777 == 0o600
        assert side.folder.stat().st_mode & 0o777 == 0o700


def test_requests_name_no_other_client(both):
    for node, client in zip(both.line.traffic, both.sides, strict=True):
        others = [name.encode() for name in toy_clients.CLIENTS if name != client]
        for asked, _ in both.line.traffic[node]:
            request = decode_request(unverified_payload(asked))
            assert request.client in (client, "-")
            payload = unverified_payload(asked)
            assert not [name for name in others if b'"' + name + b'"' in payload]


def test_counts_that_are_not_to_be_told_are_in_no_message(both):
    weights = set()
    for each in both.line.traffic.values():
        for _, answered in each:
            answer = decode_answer(unverified_payload(answered))
            if answer.method == "dp_uncounted" and answer.operation != "hello":
                weights |= {answer.weight, *(mean.weight for mean in answer.metrics.values())}
    # Evaluations go by the recipe's own method, whose counts may be told.
    assert weights == {0.0, 1.0}


def test_the_servers_folder_is_a_run_like_any_other(both):
    served = both.there["fedsdr"]
    summary = files.read_json(served / "summary.json")
    assert summary["methods"].keys() == both.there.keys()
    assert "fedsdr" in (served / "report.html").read_text()
    assert [row["name"] for row in files.read_json(served / "partition.json")] == [
        *toy_clients.CLIENTS
    ]


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"baselines": ["central"]}, "pools everybody's data"),
        ({"evaluate": {"benchmarks": ["mmlu"]}}, "needs a model at the server"),
        ({"lora": {"ranks": {"dora": 1}}, "federation": {"lora_aggregation": "flora"}}, "dora"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_message_is_sent(tmp_path, sections, reason):
    baselines = sections.pop("baselines", None)
    recipe_file = tiny_recipe.write_recipe(tmp_path, **sections)
    if baselines:
        recipe_file.write_text(f"baselines = {json.dumps(baselines)}\n{recipe_file.read_text()}")
    line = Loopback({})
    with pytest.raises(UserError, match=reason):
        serve_federation(
            load_recipe(recipe_file),
            tmp_path / "out",
            ServerConnection(line, {"anna": UNSIGNED}, UNSIGNED),
            silent_reporter(),
        )
    assert not (tmp_path / "out").exists()


def test_private_adapters_stay_wrapped_on_the_way(both):
    """What the engine keeps is private by type until the store writes it."""
    side = both.sides["ben"]
    [engine] = [e for (_, method), e in side._engines.items() if method == "fedsdr"]
    state = engine.state("ben", 2)
    assert set(state.private) == {"smoothing"}
    assert all(torch.is_tensor(t) for t in unwrap_private(state.private["smoothing"]).values())
