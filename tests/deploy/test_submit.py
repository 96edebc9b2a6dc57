"""Waiting for a ServerApp: its own status file is looked at often, and Flower's list rarely."""

from pathlib import Path
from typing import Any

import pytest

from fedsdr.core import files
from fedsdr.core.errors import UserError
from fedsdr.deploy.flower import submit
from fedsdr.deploy.flower.submit import LINK_AWAY, retry_for, wait_for_end
from fedsdr.deploy.sites.folder import STATUS

PAUSE, SUBMITTED = 2.0, 1000.0


class Clock:
    """Stands in for `time`: sleeping is all that takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class ServerApp:
    """Ends at a moment, or dies then without a word. `asked`: when Flower's list was asked for."""

    def __init__(self, clock: Clock, ends: float, words: bool) -> None:
        self.clock, self.ends, self.words = clock, ends, words
        self.asked: list[float] = []

    def status(self, folder: Path) -> dict[str, Any]:
        over = self.words and self.clock.now >= self.ends
        return {"began": SUBMITTED + 1, "state": "finished" if over else "running", "error": ""}

    def listed(self, folder: Path, number: int) -> str | None:
        self.clock.now += 1.0  # a process takes its time
        self.asked.append(self.clock.now)
        return "finished:completed" if self.clock.now >= self.ends else None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(submit, "time", clock)
    return clock


def served(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, ends: float, words: bool = True
) -> ServerApp:
    app = ServerApp(clock, ends, words)
    monkeypatch.setattr(submit, "read_status", app.status)
    monkeypatch.setattr(submit, "flower_state", app.listed)
    return app


def test_flowers_list_is_asked_for_rarely_and_the_end_is_seen_at_once(tmp_path, monkeypatch, clock):
    app = served(monkeypatch, clock, ends=3600.0)
    assert wait_for_end(tmp_path, 7, SUBMITTED, PAUSE) == "finished:completed"
    assert clock.now - app.ends <= PAUSE + 1 + 1
    assert len(app.asked) < 3600 / 15 + 5


@pytest.mark.parametrize("ends", [0.5, 5.0, 100.0, 1234.5])
def test_a_server_app_that_dies_without_a_word_is_missed_within_twenty_seconds(
    tmp_path, monkeypatch, clock, ends
):
    served(monkeypatch, clock, ends, words=False)
    assert wait_for_end(tmp_path, 7, SUBMITTED, PAUSE) == "finished:completed"
    assert clock.now - ends < 20


def test_the_status_of_an_earlier_run_ends_nothing(tmp_path, monkeypatch, clock):
    app = ServerApp(clock, ends=300.0, words=False)
    monkeypatch.setattr(submit, "flower_state", app.listed)
    files.write_json(tmp_path / STATUS, {"began": SUBMITTED - 1, "state": "failed", "error": ""})
    wait_for_end(tmp_path, 7, SUBMITTED, PAUSE)
    assert len(app.asked) < 300 / 15 + 5


def test_a_superlink_that_is_away_is_tried_less_and_less_often(clock):
    tries = []

    def away() -> None:
        tries.append(clock.now)
        raise UserError("away")

    with pytest.raises(UserError, match="away"):
        retry_for(away, LINK_AWAY, PAUSE)
    assert LINK_AWAY <= clock.now < LINK_AWAY + 20
    assert len(tries) < LINK_AWAY / 15 + 5
    assert tries[1] == PAUSE
