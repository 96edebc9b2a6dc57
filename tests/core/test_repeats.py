"""Repeated events are reported at once, then counted: a bounded number of lines a minute."""

import logging

import pytest

from fedsdr.core.repeats import KINDS, OTHERS, PERIOD, RepeatHandler, RepeatLimit


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_is_reported_at_once_and_the_others_with_the_first_after_a_period(clock):
    limit: RepeatLimit[int] = RepeatLimit(clock=clock)
    assert limit.add("a", 1) == [(1, 1)]
    assert [limit.add("a", k) for k in (2, 3)] == [[], []]
    assert limit.add("b", 4) == [(4, 1)], "another kind"
    clock.now += PERIOD
    assert limit.add("a", 5) == [(5, 3)]
    assert limit.add("a", 6) == []


def test_what_waits_is_reported_with_an_event_of_another_kind_or_at_the_end(clock):
    limit: RepeatLimit[int] = RepeatLimit(clock=clock)
    limit.add("a", 1)
    limit.add("a", 2)
    clock.now += PERIOD
    assert limit.add("b", 3) == [(2, 1), (3, 1)]
    limit.add("a", 4)
    limit.add("b", 5)
    assert limit.rest() == [(4, 1), (5, 1)]
    assert limit.rest() == []


def test_kinds_without_end_are_one_kind_and_are_forgotten(clock):
    limit: RepeatLimit[int] = RepeatLimit(clock=clock)
    reports = [limit.add(f"kind {k}", k) for k in range(10 * KINDS)]
    assert sum(map(len, reports)) == KINDS + 1
    assert len(limit._kinds) == KINDS + 1
    clock.now += PERIOD
    assert limit.add("a", -1) == [(10 * KINDS - 1, 9 * KINDS - 1), (-1, 1)]
    assert [*limit._kinds] == [OTHERS, "a"], "there is room for kinds again"


def test_no_event_is_lost_or_counted_twice(clock):
    limit: RepeatLimit[str] = RepeatLimit(kinds=3, clock=clock)
    told = 0
    for k in range(1000):
        told += sum(count for _, count in limit.add(str(k % 7), ""))
        clock.now += 7.0 * (k % 5)
    assert told + sum(count for _, count in limit.rest()) == 1000


def test_a_log_has_a_repeated_message_once_and_then_its_count(capsys, monkeypatch):
    clock = Clock()
    handler = RepeatHandler()
    monkeypatch.setattr(handler, "_limit", RepeatLimit(clock=clock))
    log = logging.Logger("alone")
    log.addHandler(handler)
    for _ in range(5):
        log.warning("a relay went away: %s", "it dripped")
    log.warning("a relay went away: %s", "it was closed")
    clock.now += PERIOD
    log.warning("ready")
    assert capsys.readouterr().err.splitlines() == [
        "a relay went away: it dripped",
        "a relay went away: it was closed",
        "a relay went away: it dripped (4 times)",
        "ready",
    ]
