"""A run killed at any point, and what it goes on from."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.algorithms.contract import (
    ServerState,
)
from fedsdr.algorithms.participation import RoundOptions
from fedsdr.core.adapters import Adapter, unwrap_private
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Metrics
from fedsdr.federation import rounds
from fedsdr.federation.checkpoint import load_checkpoint, save_checkpoint
from fedsdr.training.store import ClientStore
from support.toy_clients import random_adapter
from support.toy_engine import NAMES, PARTIAL, ROUNDS, Killed, go, same, timeless


def points(folder: Path) -> list[str]:
    """Every point that an undisturbed run passes, in order."""
    passed: list[str] = []
    with watched(passed.append):
        go(folder, at=passed.append)
    return passed


class watched:  # noqa: N801 (read as a verb)
    """Calls `at` before and after each line of the log and each checkpoint is written."""

    def __init__(self, at: Callable[[str], None]) -> None:
        self.at, self.patch = at, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        def append(path: Path, row: Any) -> None:
            self.at(f"round {row['round']} before the log's line")
            APPEND(path, row)
            self.at(f"round {row['round']} between log and checkpoint")

        def save(folder: Path, round: int, state: ServerState) -> None:
            self.at(f"round {round} before the checkpoint")
            save_checkpoint(folder, round, state)
            self.at(f"round {round} after the checkpoint")

        self.patch.setattr(rounds.files, "append_json_line", append)
        self.patch.setattr(rounds, "save_checkpoint", save)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


APPEND = rounds.files.append_json_line


def killer(point: str) -> Callable[[str], None]:
    def at(passed: str) -> None:
        if passed == point:
            raise Killed(point)

    return at


def go_killed(folder: Path, point: str) -> None:
    at = killer(point)
    with watched(at), pytest.raises(Killed):
        go(folder, at=at)


def assert_as_undisturbed(folder: Path, whole: Path, state: ServerState) -> None:
    expected = load_checkpoint(whole)
    assert expected is not None
    assert expected[0] == ROUNDS
    assert same(state.adapter, expected[1].adapter)
    assert same(load_checkpoint(folder)[1].adapter, state.adapter)
    assert timeless(folder) == timeless(whole)
    for name in NAMES:
        a, b = (ClientStore(it / "clients").load(name, ROUNDS) for it in (folder, whole))
        assert a.private.keys() == b.private.keys()
        assert all(
            same(unwrap_private(a.private[k]), unwrap_private(b.private[k])) for k in a.private
        )
    files = [
        {str(p.relative_to(it)) for p in it.rglob("*") if p.is_file()} for it in (folder, whole)
    ]
    assert files[0] == files[1]  # older versions of private states are gone, too


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_killed_at_any_point_ends_as_if_it_were_not(tmp_path):
    whole = tmp_path / "whole"
    passed = points(whole)
    assert len(passed) == len({*passed}) == 2 + ROUNDS * (2 * 2 + 1 + 4 + 2)
    for number, point in enumerate(passed):
        folder = tmp_path / str(number)
        go_killed(folder, point)
        state, _ = go(folder)
        assert_as_undisturbed(folder, whole, state)


@pytest.mark.parametrize("seed", range(8))
def test_a_run_killed_again_and_again_ends_as_if_it_were_not(tmp_path, seed):
    """Each attempt dies after a number of points drawn from 1 to 16; a round has 11."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    points(whole)
    draw = random.Random(seed)
    attempts = 0
    while True:
        left = draw.randint(1, 16)

        def at(passed: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed(passed)

        attempts += 1
        try:
            with watched(at):
                state, _ = go(folder, at=at)
        except Killed:
            continue
        break
    assert attempts > ROUNDS
    assert_as_undisturbed(folder, whole, state)


def test_a_log_line_cut_short_is_written_again(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    points(whole)
    go_killed(folder, "round 2 before the log's line")
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"round": 2, "clients": ["an')
    state, _ = go(folder)
    assert_as_undisturbed(folder, whole, state)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_log_without_the_line_of_a_committed_round_is_refused(tmp_path, lost):
    """Nothing that is counted over rounds, epsilon above all, is right without it."""
    go_killed(tmp_path, "round 3 before anna")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:lost] + lines[lost + 1 :]))
    with pytest.raises(UserError, match="does not have a line for each round up to 2"):
        go(tmp_path)


def test_a_finished_run_trains_and_evaluates_nothing_more(tmp_path):
    first, _ = go(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def evaluate(adapter: Adapter) -> Metrics:
        raise AssertionError

    again, engine = go(tmp_path, evaluate=evaluate)
    assert engine.seen == []
    assert same(again.adapter, first.adapter)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_more_rounds_than_before_go_on_from_the_last(tmp_path):
    whole, _ = go(tmp_path / "whole")
    short = RoundOptions(PARTIAL.seed, 2, PARTIAL.participation, PARTIAL.every)
    go(tmp_path / "short", short)
    longer, engine = go(tmp_path / "short")
    assert [round for round, _ in engine.seen] == [3, 4]
    assert same(longer.adapter, whole.adapter)


def test_a_checkpoint_keeps_the_servers_memory_bit_for_bit(tmp_path):
    memory = {"m": random_adapter("m"), "v": random_adapter("v", dtype=torch.float32)}
    state = ServerState(random_adapter("R", dtype=torch.bfloat16), memory)
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 17, state)
    round, loaded = load_checkpoint(tmp_path)
    assert round == 17
    assert same(loaded.adapter, state.adapter)
    assert loaded.memory.keys() == memory.keys()
    assert all(same(loaded.memory[name], memory[name]) for name in memory)
    assert loaded.memory["v"]["layers.0.x.lora_A.weight"].dtype == torch.float32


def test_a_checkpoint_that_is_no_checkpoint_is_the_users_error(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="cannot read tensors from"):
        go(tmp_path)
