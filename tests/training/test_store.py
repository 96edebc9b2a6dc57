"""A client's private store: versions, pruning, files of their owner alone."""

import stat

import pytest
import torch

from fedsdr.algorithms.contract import (
    ClientState,
)
from fedsdr.algorithms.two_stream import SMOOTHING
from fedsdr.core.adapters import Private, unwrap_private
from fedsdr.training.store import ClientStore
from support.toy_clients import random_adapter
from support.toy_engine import NAMES, go, same


def numbered(value: int) -> ClientState:
    return ClientState({SMOOTHING: Private({"a": torch.full((2,), float(value))})})


def value(state: ClientState) -> int | None:
    if not state.private:
        return None
    return int(unwrap_private(state.private[SMOOTHING])["a"][0])


@pytest.mark.parametrize(
    ("committed", "expected"),
    [(0, None), (1, None), (2, 2), (3, 2), (4, 2), (5, 5), (8, 5), (9, 9), (100, 9)],
)
def test_a_store_gives_the_latest_version_up_to_the_committed_round(tmp_path, committed, expected):
    store = ClientStore(tmp_path)
    for round in (5, 2, 9):
        store.save("anna", round, numbered(round))
    assert value(store.load("anna", committed)) == expected
    assert value(store.load("ben", committed)) is None


@pytest.mark.parametrize(
    ("committed", "left"),
    [(0, [2, 5, 9]), (2, [2, 5, 9]), (4, [2, 5, 9]), (5, [5, 9]), (8, [5, 9]), (9, [9])],
)
def test_pruning_keeps_what_a_resumed_run_can_ask_for(tmp_path, committed, left):
    store = ClientStore(tmp_path)
    for round in (2, 5, 9):
        store.save("anna", round, numbered(round))
        store.save("ben", round, numbered(round))
    before = value(store.load("anna", committed))
    store.prune("anna", committed)
    store.prune("anna", committed)
    names = [path.name for path in sorted((tmp_path / "anna").iterdir())]
    assert names == [f"state-{round:06d}.safetensors" for round in left]
    assert len([*(tmp_path / "ben").iterdir()]) == 3
    assert value(store.load("anna", committed)) == before


@pytest.mark.parametrize(("after", "left"), [(1, []), (2, [2]), (4, [2]), (5, [2, 5]), (9, [2, 5])])
def test_rounds_that_were_not_committed_are_discarded(tmp_path, after, left):
    store = ClientStore(tmp_path)
    for round in (2, 5):
        store.save("anna", round, numbered(round))
        store.save("ben", round, numbered(round))
    store.discard("anna", after)
    assert store._versions("anna") == left
    assert store._versions("ben") == [2, 5]


def test_saving_a_round_again_replaces_it(tmp_path):
    store = ClientStore(tmp_path)
    store.save("anna", 1, numbered(1))
    store.save("anna", 1, numbered(7))
    assert value(store.load("anna", 1)) == 7


def test_a_client_without_private_adapters_leaves_no_file(tmp_path):
    ClientStore(tmp_path).save("anna", 1, ClientState())
    assert [*tmp_path.iterdir()] == []


def test_several_private_adapters_come_back_under_their_names(tmp_path):
    store = ClientStore(tmp_path)
    kept = {"smoothing": random_adapter("S"), "own": random_adapter("own", dtype=torch.bfloat16)}
    store.save("anna", 1, ClientState({name: Private(a) for name, a in kept.items()}))
    loaded = store.load("anna", 1).private
    assert loaded.keys() == kept.keys()
    assert all(same(unwrap_private(loaded[name]), kept[name]) for name in kept)


def test_files_of_other_names_are_not_versions(tmp_path):
    store = ClientStore(tmp_path)
    store.save("anna", 1, numbered(1))
    for name in ("state-2.safetensors", "state-000003.safetensors.bak", ".state-000004.x.tmp"):
        (tmp_path / "anna" / name).write_bytes(b"x")
    assert value(store.load("anna", 9)) == 1
    store.prune("anna", 9)
    assert len([*(tmp_path / "anna").iterdir()]) == 4


def test_client_folders_and_states_are_their_owners_alone(tmp_path):
    go(tmp_path)
    folders = [path for path in (tmp_path / "clients").rglob("*") if path.is_dir()]
    states = [path for path in (tmp_path / "clients").rglob("*") if path.is_file()]
    assert {path.name for path in folders} == {*NAMES}
    assert len(states) == len(NAMES)  # pruned to one each
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in states} == {0o600}
