"""The report's figures: lines, names, styles and numbers."""

import json
import re
from pathlib import Path

import pytest

from fedsdr.report import charts, figures, labels, palette, text
from fedsdr.report.load import load_run
from support.report_folders import METHODS, minimal, read, write


def test_methods_that_never_move_have_no_line(comparison: Path) -> None:
    still = {name: [f"seed-0/baselines/{name}"] for name in ("base", "local")}
    summary = json.loads((comparison / "summary.json").read_text())
    summary["runs"] |= still
    write(comparison / "summary.json", summary)
    row = '{"round": %d, "eval": {"client_facts": 50, "general": 100}}\n'
    for rounds, name in enumerate(still, start=1):
        folder = comparison / "seed-0" / "baselines" / name
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("".join(row % index for index in range(rounds)))
    material = load_run(comparison)
    styles = palette.method_styles(method.name for method in material.methods)
    chart = charts.facts_plane(material, styles)
    assert chart is not None
    assert chart.note == "Base model and Local only stay at the start and have no line."
    assert [key.label for key in chart.keys] == [labels.method_label(n).label for n in METHODS[1:]]
    assert not re.search(r">(base|local)<", chart.panels[0].svg)
    assert chart.note in read(comparison)[1].text


@pytest.mark.parametrize(("other", "end"), [(50, 50), (55, 60)])
def test_a_point_elsewhere_or_a_standstill_is_drawn(tmp_path: Path, other: int, end: int) -> None:
    """A point away from the start is news; and where nothing moves, nothing is left out."""
    minimal(tmp_path, runs={"fedsd": ["."], "fedsdr": ["own"]}, seeds=[0])
    row = '{"round": %d, "eval": {"client_facts": %d, "general": 100}}\n'
    (tmp_path / "own").mkdir()
    (tmp_path / "metrics.jsonl").write_text(row % (0, other))
    (tmp_path / "own" / "metrics.jsonl").write_text(row % (0, 50) + row % (1, end))
    chart = charts.facts_plane(load_run(tmp_path), palette.method_styles(("fedsd", "fedsdr")))
    assert chart is not None
    assert (chart.note, len(chart.keys)) == ("", 2)


def test_conflict_needs_two_streams(comparison: Path) -> None:
    material = load_run(comparison)
    styles = palette.method_styles(method.name for method in material.methods)
    chart = charts.conflict_chart(material, styles)
    assert chart is not None
    assert [key.label for key in chart.keys] == ["FedSDR"]
    assert [panel.heads for panel in chart.panels] == [("FedSDR",), ("FedSDR R", "FedSDR S")]


def test_names_in_figures_keep_their_distance() -> None:
    heights = figures.label_heights([(0, 10), (5, 12), (300, 11), (2, 11)])
    low, middle, high = sorted(heights[index] for index in (0, 1, 3))
    assert min(middle - low, high - middle) >= 14
    assert heights[2] == 11  # far to the side: stays


def test_styles_differ_in_more_than_colour() -> None:
    names = [*labels.METHOD_LABELS, "one", "two", "three", "four"]
    styles = palette.method_styles(names)
    assert len({style.slot for style in styles.values()}) == len(names)
    assert len({(style.marker, style.dash) for style in styles.values()}) == len(names)
    assert palette.method_styles(["fedsdr"])["fedsdr"] == styles["fedsdr"]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.format_fixed(-0.04), "0.0"),
        (text.format_fixed(-1.25, 2), "\N{MINUS SIGN}1.25"),
        (text.format_fixed(12345, 0), "12\N{THIN SPACE}345"),
        (text.format_fixed(None), "\N{EN DASH}"),
        (text.format_signed(0.25, 2), "+0.25"),
        (text.format_signed(0.0004, 3), "0.000"),
        (text.format_span(-1, 2), "\N{MINUS SIGN}1.0 \N{EN DASH} 2.0"),
        (text.format_duration(4.26), "4.3 s"),
        (text.format_duration(59.7), "1 min 0 s"),
        (text.format_duration(7384), "2 h 3 min"),
        (text.format_size(1_658_880), "1.58 MiB"),
        (text.format_size(1_010 * 1024), "0.986 MiB"),
        (text.format_size(999 * 1024), "999 KiB"),
        (text.format_size(64 * 2**20), "64 MiB"),
        (text.format_size(512), "512 B"),
        (text.format_size(2**50), "1 PiB"),
    ],
)
def test_numbers_read_well(shown: str, expected: str) -> None:
    assert shown == expected


def test_forty_other_methods_are_told_apart():
    names = [f"variant {index}" for index in range(40)]
    looks = {(s.light, s.marker, s.dash) for s in palette.method_styles(names).values()}
    assert len(looks) == 40
