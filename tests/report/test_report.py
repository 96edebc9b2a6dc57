"""The report page: whole, self-contained, safe against its data, and a function of the files."""

import re
from pathlib import Path

import pytest

from fedsdr.core.errors import UserError
from fedsdr.report import labels, palette, rewrites, series, tables
from fedsdr.report.html import TEMPLATES, write_report
from fedsdr.report.load import load_run
from support.report_folders import HOSTILE, METHODS, distillation, minimal, read, score, write


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


def test_rewrites_are_summed_up_in_words(comparison: Path) -> None:
    (group,) = rewrites.rewrite_groups(load_run(comparison))
    assert group.words == (
        "The base model was asked to rewrite 800 responses; 360 rewrites (45.0 %) passed the "
        "checks. Of 320 of these the right answer is known, and 96 (30.0 %) are wrong: training on "
        "them teaches what no client has written. 20 of the rewrites that passed have a name or "
        "number that is in neither prompt nor raw response. A response has 5.0 words before and "
        "14.0 after rewriting."
    )
    assert group.words in read(comparison)[1].text


def test_examples_show_wrong_rewrites_first_but_not_only(tmp_path: Path) -> None:
    report = distillation(0.9)
    report["pairs"] = [{**pair} for pair in 2 * report["pairs"]]
    for index, pair in enumerate(report["pairs"]):
        pair["wrong"] = index < 13
    minimal(tmp_path, runs={"fedsd": ["."]}, seeds=[0])
    write(tmp_path / "distillation.json", report)
    (group,) = rewrites.rewrite_groups(load_run(tmp_path))
    assert [pair["wrong"] for pair in group.pairs] == [True] * 12 + [False] * 8


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
    assert "wrong" not in group.words
