"""The summary in the terminal."""

import pytest
from rich.console import Console

from fedsdr.report.terminal import print_summary

ESTIMATE = {"n": 3, "mean": 50.25, "low": 48.25, "high": 52.25}
SUMMARY = {
    "methods": {
        "base": {"general": {"n": 1, "mean": 100.0, "low": None, "high": None}},
        "fedsd_verified": {"general": ESTIMATE, "personal_loss": ESTIMATE | {"mean": 1.23456}},
    },
    "claims": [{"verdict": "fails", "claim": "A beats [b]", "words": "-1.0"}],
}


def shown(width: int) -> str:
    console = Console(width=width, record=True, quiet=False, file=None)
    with console.capture() as capture:
        print_summary(SUMMARY, console)
    return capture.get()


@pytest.mark.parametrize("width", [60, 200])
def test_every_method_and_claim_is_shown(width):
    text = shown(width)
    assert "base" in text
    assert "fedsd_verified" in text
    assert "50.2" in text
    assert "1.23" in text
    assert "FAILS: A beats [b]. -1.0" in text


def test_intervals_where_there_is_room_and_more_than_one_seed():
    assert "50.2 ± 2.0" in shown(200)
    assert "100.0 ±" not in shown(200)
    assert "±" not in shown(60)


def test_columns_that_no_method_has_are_left_out():
    assert "halluc" not in shown(200)
