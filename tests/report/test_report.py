"""The report page: whole, self-contained, safe against its data, and a function of the files."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedsdr.core.errors import UserError
from fedsdr.report import charts, clients, figures, labels, palette, rewrites, series, tables, text
from fedsdr.report.html import TEMPLATES, write_report
from fedsdr.report.load import load_run

HOSTILE = "<script>alert('x')</script> $\\frac{1}$ & \"quoted\""
VOID = {"meta", "br", "img", "link", "input", "hr"}
METHODS = ("base", "fedavg", "fedsd", "fedsdr")


class Page(HTMLParser):
    """Checks that tags close in order; gathers ids, attributes, and the text a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.boxes: list[str] = []  # the classes of what is open
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.loose: list[str] = []  # tables outside of a box that scrolls
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table" and self.boxes[-1:] != ["scroll"]:
            self.loose.append(str(attrs))
        if tag not in VOID:
            self.open.append(tag)
            self.boxes.append(dict(attrs).get("class") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.boxes.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title", "desc"):
            self.text += data

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.tags if "id" in attrs]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def score(mean: float, n: int = 3, width: float | None = 2.0) -> dict[str, Any]:
    low, high = (None, None) if width is None else (mean - width, mean + width)
    return {"n": n, "mean": mean, "low": low, "high": high}


def metrics(shift: float, streams: bool) -> str:
    rows = []
    for index in range(4):
        facts = {"client_facts": 50 + shift * index, "general": 100 - 2 * index * shift}
        row: dict[str, Any] = {"round": index, "clients": ["remedy", "founder"]}
        row["eval"] = facts | {"hallucination": 40.0, "length": 12.0} if index != 2 else None
        if index:
            train = {"loss/rectify": 2 / index, "bytes_up": 1000, "bytes_down": 1000, "seconds": 2}
            stream = {"loss/smooth": 1.0, "conflict/cosine": -0.1, "norm/R": index, "norm/S": 1.5}
            row["train"] = train | stream if streams else train
        rows.append(json.dumps(row) + "\n")
    return "".join(rows) + '{"round": 4, "cli'  # a crash cut the last line


def distillation(wrong: float | None) -> dict[str, Any]:
    client = {
        "records": 100,
        "rewritten": 90,
        "fallbacks": {"truncated": 7, "own_check": 3},
        "attempts": 120,
        "raw_words": 5.0,
        "rewrite_words": 14.0,
        "wrong": wrong,
        "checked": 0 if wrong is None else 80,
    }
    pair = {"client": "remedy", "raw": HOSTILE, "rewrite": "b", "source": "rewritten", "reason": ""}
    pairs = [pair | {"instruction": f"{HOSTILE} {i}", "wrong": i in (3, 5)} for i in range(15)]
    return {"clients": {"remedy": client, "founder": client | {"records": 300}}, "pairs": pairs}


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Three trained methods, two seeds, claims of every verdict."""
    runs = {
        "fedavg": ["seed-0/baselines/fedavg", "seed-1/baselines/fedavg"],
        "fedsd": ["seed-0/baselines/fedsd", "seed-1/baselines/fedsd"],
        "fedsdr": ["seed-0", "seed-1"],
    }
    scores = {
        name: {"client_facts": score(50 + i), "general": score(100 - i), "length": score(9.0)}
        for i, name in enumerate(METHODS)
    }
    scores["fedsdr"]["personal_client_facts"] = score(80.0)
    claims = [
        {"claim": f"claim {verdict}", "verdict": verdict, "words": f"words {verdict} {HOSTILE}"}
        for verdict in ("holds", "fails", "open")
    ]
    summary: dict[str, Any] = {"kind": "compare", "name": HOSTILE, "own": "fedsdr", "seeds": [0, 1]}
    summary |= {"seconds": 75.2, "methods": scores, "runs": runs, "claims": claims}
    write(tmp_path / "summary.json", summary)
    for name, places in runs.items():
        for seed, place in enumerate(places):
            folder = tmp_path / place
            folder.mkdir(parents=True, exist_ok=True)
            shift = 1.0 + seed + len(name) / 10
            (folder / "metrics.jsonl").write_text(metrics(shift, name == "fedsdr"))
            if name != "fedavg":
                write(folder / "distillation.json", distillation(0.3))
    client = {"records": 500, "held_out": 55, "mean_prompt_words": 20.1, "mean_response_words": 4.2}
    part = [{"name": HOSTILE, "categories": {"qa": 300, HOSTILE: 200}} | client]
    write(tmp_path / "seed-0" / "partition.json", part)
    (tmp_path / "seed-0" / "recipe.toml").write_text(f"# {HOSTILE}\nseed = 0\n")
    write(tmp_path / "seed-0" / "environment.json", {"python": "3.11", "git": None, "os": HOSTILE})
    return tmp_path


def minimal(folder: Path, **more: Any) -> Path:
    summary = {"kind": "run", "name": "one", "own": "fedsdr", "seeds": [0], "seconds": 3.0}
    write(folder / "summary.json", summary | {"methods": {}, "runs": {}, "claims": []} | more)
    return folder


def read(folder: Path) -> tuple[str, Page]:
    path = write_report(folder)
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def test_page_is_self_contained(comparison: Path) -> None:
    html, page = read(comparison)
    assert not re.search(r"https?://|@import|<link|<script|<iframe|url\((?!#)", html)
    assert not [attrs for _, attrs in page.tags if "src" in attrs or "onclick" in attrs]
    links = [attrs["href"] or "" for _, attrs in page.tags if "href" in attrs]
    assert {link[:1] for link in links} == {"#"}


def test_every_reference_has_its_one_target(comparison: Path) -> None:
    html, page = read(comparison)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    used = re.findall(r"(?:href=\"#|url\(#)([^\")]+)", html)
    labelled = [a["aria-labelledby"] or "" for _, a in page.tags if "aria-labelledby" in a]
    assert {*used, *" ".join(labelled).split()} <= set(ids)


def test_texts_of_the_data_stay_texts(comparison: Path) -> None:
    html, page = read(comparison)
    assert "alert(&#39;x&#39;)" in html
    assert page.count("script") == 0
    assert page.text.count(HOSTILE) >= 8  # name, claims, pairs, client, category, recipe, os


def test_methods_claims_and_sections_are_shown(comparison: Path) -> None:
    _, page = read(comparison)
    for name in METHODS:
        assert labels.method_label(name).label in page.text
    for verdict, word in labels.VERDICTS.items():
        assert word in page.text
        assert f"claim {verdict}" in page.text
    sections = [attrs.get("id") for tag, attrs in page.tags if tag == "section"]
    assert sections == [
        *("words", "scores", "trade-off", "curves", "training"),
        *("conflict", "rewrites", "data", "traffic", "recipe"),
    ]
    assert "Of 3 claims, 1 holds, 1 does not and 1 is open." in page.text
    assert "a method that learns nothing\nforgets nothing" in page.text


def test_figures_follow_the_theme_and_speak(comparison: Path) -> None:
    html, page = read(comparison)
    plots = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("class") == "plot"]
    assert len(plots) == 1 + 4 + 2 + 2  # plane, metrics, losses, streams
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in plots)
    assert "FedSDR: from 50% at round 0 to 5" in html
    assert not [colour for colour in palette.colour_placeholders() if colour in html]
    assert "prefers-color-scheme: dark" in html


def test_a_telephone_shows_all_of_it(comparison: Path) -> None:
    """Tables scroll in boxes of their own, figures take the page's width, long words break."""
    html, page = read(comparison)
    assert page.count("table") >= 5
    assert page.loose == []
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.tags
    )
    plots = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("class") == "plot"]
    assert all("viewbox" in attrs and not {"width", "height"} & attrs.keys() for attrs in plots)
    for rule in (
        ".scroll { overflow-x: auto;", "svg.plot { display: block; width: 100%; height: auto;",
        "p, dd, td, th, li, pre, h1 { overflow-wrap: anywhere; }", "@media (max-width: 480px)",
    ):  # fmt: skip
        assert rule in html


@pytest.mark.parametrize("page", sorted(TEMPLATES.glob("*.html.jinja")), ids=lambda p: p.name)
def test_every_page_is_made_for_a_telephone(page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in source
    assert source.count("<table") == len(
        re.findall(r"{% call m\.scroll\([^)]+\) %}\n<table", source)
    )


def test_what_was_left_out_has_a_section(comparison: Path) -> None:
    notices = [{"kind": "left out", "words": f"3 records {HOSTILE}"}]
    write(comparison / "seed-0" / "notices.json", notices)
    _, page = read(comparison)
    assert f"Left out: 3 records {HOSTILE}" in " ".join(page.text.split())


def test_output_is_a_function_of_the_files(comparison: Path) -> None:
    first, _ = read(comparison)
    assert first == read(comparison)[0]
    assert not list(comparison.glob("*.tmp"))


def test_only_summary_is_needed(tmp_path: Path) -> None:
    _, page = read(minimal(tmp_path))
    assert page.count("section") == page.count("a") == 0


def test_missing_files_of_runs_are_left_out(comparison: Path) -> None:
    for path in [*comparison.rglob("*.jsonl"), *comparison.rglob("*.toml")]:
        path.unlink()
    for name in ("distillation", "partition", "environment"):
        for path in comparison.rglob(f"{name}.json"):
            path.unlink()
    _, page = read(comparison)
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == ["words", "scores"]


def test_one_seed_without_intervals(tmp_path: Path) -> None:
    methods = {"base": {"loss": score(2.0, 1, None)}, "fedsdr": {"loss": score(1.5, 1, None)}}
    minimal(tmp_path, methods=methods, runs={"fedsdr": ["."]})
    (tmp_path / "metrics.jsonl").write_text(
        '{"round": 0, "eval": {"loss": 2.0, "odd": null, "nan": NaN}}\n'
    )
    _, page = read(tmp_path)
    assert "n = 1" in page.text
    assert "1.500" in page.text
    assert "best:" not in page.text
    assert "\N{EN DASH}" not in page.text


def test_a_folder_without_summary_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no summary\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "[1]"),
        ("summary.json", "{"),
        ("metrics.jsonl", "{\n{}\n"),
        ("personal.json", "[1]"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    minimal(tmp_path, runs={"fedsdr": ["."]})
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(name)):
        write_report(tmp_path)


def test_unknown_names_get_readable_labels(tmp_path: Path) -> None:
    methods = {"fedsdr": {"rouge_l": score(0.3)}, "my_method": {"rouge_l": score(0.4)}}
    minimal(tmp_path, methods=methods, seeds=[0, 1, 2])
    _, page = read(tmp_path)
    assert "Rouge l" in page.text
    assert "My method" in page.text
    assert "best:" not in page.text  # nobody knows which direction is better


def test_best_is_marked_among_trained_methods(comparison: Path) -> None:
    material = load_run(comparison)
    assert tables.best_methods(material, "client_facts") == {"fedsdr"}
    assert tables.best_methods(material, "general") == {
        "fedavg"
    }  # base is higher, but is no method
    assert tables.best_methods(material, "length") == set()
    assert (
        tables.best_methods(material, "personal_client_facts") == set()
    )  # nothing to compare with


def test_curves_share_rounds_and_take_the_last_word(comparison: Path) -> None:
    path = comparison / "seed-1" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)[:3]  # seed 1 is behind: rounds 0, 1, 2
    again = '{"round": 1, "eval": {"client_facts": 60.0}}\n'  # a resumed run writes anew
    path.write_text("".join([*lines, again]))
    method = next(each for each in load_run(comparison).methods if each.name == "fedsdr")
    curve = series.mean_curve(method, "eval", "client_facts")
    assert curve is not None
    assert curve.rounds == (0, 1)
    assert curve.mean == pytest.approx((50.0, (51.6 + 60.0) / 2))
    assert (curve.low[1], curve.high[1]) == pytest.approx((51.6, 60.0))
    assert curve.n == 2


def test_rewrites_are_summed_over_seeds_and_shared_by_methods(comparison: Path) -> None:
    (group,) = rewrites.rewrite_groups(load_run(comparison))
    assert group.methods == ("FedSDR", "FedSD")
    remedy, founder, everybody = group.clients
    assert (remedy["records"], founder["records"], everybody["records"]) == ("200", "600", "800")
    assert remedy["fallbacks"] == "cut off 14, own check 6"
    assert everybody["rewritten"] == "45.0 %"
    assert everybody["wrong"] == "30.0 %"


def test_examples_show_wrong_rewrites_first_but_not_only(tmp_path: Path) -> None:
    report = distillation(0.9)
    for index, pair in enumerate(report["pairs"]):
        pair["wrong"] = index < 11
    minimal(tmp_path, runs={"fedsd": ["."]}, seeds=[0])
    write(tmp_path / "distillation.json", report)
    (group,) = rewrites.rewrite_groups(load_run(tmp_path))
    assert [pair["wrong"] for pair in group.pairs] == [True] * 8 + [False] * 4


def test_a_refused_rewrite_is_not_shown_as_one(tmp_path: Path) -> None:
    report = distillation(None)
    refused = {"source": "raw", "reason": "truncated", "rewrite": HOSTILE, "wrong": False}
    report["pairs"] = [report["pairs"][0] | refused]
    write(minimal(tmp_path, runs={"fedsd": ["."]}) / "distillation.json", report)
    _, page = read(tmp_path)
    assert "not used (cut off)" in page.text
    assert "Refused; the raw response is the target." in page.text


def test_unchecked_rewrites_claim_nothing(tmp_path: Path) -> None:
    write(minimal(tmp_path, runs={"fedsd": ["."]}) / "distillation.json", distillation(None))
    (group,) = rewrites.rewrite_groups(load_run(tmp_path))
    assert {row["wrong"] for row in group.clients} == {"\N{EN DASH}"}


def personal_table(folder: Path) -> clients.ClientScores | None:
    material = load_run(folder)
    return clients.client_table(
        material, palette.method_styles(method.name for method in material.methods)
    )


def test_clients_are_shown_one_by_one_over_the_seeds(comparison: Path) -> None:
    row = {"length": 5.0, "general": 80.0, "client_facts": 90.0, "base_style": 1.0}
    write(comparison / "seed-0" / "personal.json", {"remedy": row, HOSTILE: row})
    write(comparison / "seed-1" / "personal.json", {"remedy": row | {"client_facts": 94.0}})
    write(comparison / "seed-0" / "baselines" / "fedavg" / "personal.json", {"nobody": row})
    table = personal_table(comparison)
    assert table is not None
    (group,) = table.groups
    names = [column.metric.label for column in group.columns]
    assert names == ["Facts learnt", "Knowledge kept", "Answer length"]
    (remedy, cells), (hostile, single) = table.rows
    assert (remedy, hostile) == ("remedy", HOSTILE)
    assert (cells[0].text, cells[0].span) == ("92.0", "90.0\N{EN DASH}94.0")
    assert (single[0].text, single[0].span) == ("90.0", "")
    _, page = read(comparison)
    assert "Client by client" in page.text
    assert "Means over 2 seeds" in page.text
    assert "nobody" not in page.text  # another method's


def test_local_training_stands_beside_the_own_models(comparison: Path) -> None:
    summary = json.loads((comparison / "summary.json").read_text())
    summary["runs"] |= {"local": ["seed-0/baselines/local"]}
    write(comparison / "summary.json", summary)
    row = {"client_facts": 90.0, "length": 5.0, "general": 80.0}
    write(comparison / "seed-0" / "personal.json", {"remedy": row, "founder": row})
    local = {"remedy": row | {"client_facts": 99.0}}
    write(comparison / "seed-0" / "baselines" / "local" / "personal.json", local)
    table = personal_table(comparison)
    assert table is not None
    assert [(each.label, len(each.columns)) for each in table.groups] == [
        ("FedSDR", 3),
        ("Local only", 2),
    ]
    assert [cell.text for cell in table.rows[0][1]] == ["90.0", "80.0", "5.0", "99.0", "80.0"]
    assert [cell.text for cell in table.rows[1][1][3:]] == ["\N{EN DASH}"] * 2
    assert "Means over" not in table.note


def test_the_own_models_loss_stands_beside_the_global_one(tmp_path: Path) -> None:
    means = dict.fromkeys(("loss/a", "loss/b", "loss/c", "loss/e"), 2.0)
    methods = {"fedsdr": {name: score(mean, 1, None) for name, mean in means.items()}}
    methods["fedsdr"]["loss/c"]["n"] = 2  # of other seeds: no difference can be told
    minimal(tmp_path, methods=methods, runs={"fedsdr": ["."]})
    own = {"a": 1.5, "b": 2.25, "c": 1.0, "d": 3.0, "e": 2.5}
    write(tmp_path / "personal.json", {k: {"loss": v, f"loss/{k}": v} for k, v in own.items()})
    table = personal_table(tmp_path)
    assert table is not None
    dash, minus = text.EN_DASH, text.MINUS
    assert {name: tuple(cell.text for cell in cells) for name, cells in table.rows} == {
        "a": ("2.000", "1.500", f"{minus}0.500"),
        "b": ("2.000", "2.250", "+0.250"),
        "c": ("2.000", "1.000", dash),
        "d": (dash, "3.000", dash),
        "e": ("2.000", "2.500", "+0.500"),
    }
    assert "For 1 of 3 clients its loss is lower" in table.note
    alone = personal_table(minimal(tmp_path, runs={"fedsdr": ["."]}))
    assert alone is not None
    assert [column.metric.label for column in alone.groups[0].columns] == ["Held-out loss"]
    assert "loss" not in alone.note


def test_a_clients_two_losses_have_different_names() -> None:
    names = ("loss/a", "personal_loss/a")
    assert [labels.metric_label(name).label for name in names] == [
        "Held-out loss: a",
        "Held-out loss: a, own model",
    ]


def test_metrics_are_told_as_they_are_counted() -> None:
    assert labels.metric_label("length").unit == "words"
    assert "over all response tokens" in labels.metric_label("loss").words


@pytest.mark.parametrize("content", [None, {}, {"remedy": {}}])
def test_without_own_models_there_is_no_table(comparison: Path, content: Any) -> None:
    if content is not None:
        write(comparison / "seed-0" / "personal.json", content)
    assert "Client by client" not in read(comparison)[1].text


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
