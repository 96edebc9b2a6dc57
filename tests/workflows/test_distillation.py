"""The distillation stage by itself: its pilot, its cache, its folder and its report."""

import json
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsdr.cli.main import app
from fedsdr.core.statistics import wilson_interval
from fedsdr.data.records import Record, Turn
from fedsdr.diagnosis.distilled import describe_all, describe_client
from fedsdr.distillation import rewrite
from fedsdr.distillation.checks import Verdict
from fedsdr.distillation.pilot import extrapolate_sample, total_pilot
from fedsdr.distillation.rewrite import Attempt, Rewritten
from fedsdr.report.distillation import write_client_page, write_overview
from support import tiny_recipe, toy_clients

GATE = {"checks": ["support"], "attempts": 2, "temperature": 1.0, "pilot": 0}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    return tiny_recipe.write_recipe(
        tmp_path, federation={"rounds": 1, "targets": "distilled"}, distill=GATE
    )


def invoke(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches that are generated from now on."""
    sizes: list[int] = []
    real: Callable[..., list[list[int]]] = rewrite.GENERATORS["fedsdr"]

    def generate(model: Any, jobs: Sequence[Any], *rest: Any) -> list[list[int]]:
        sizes.append(len(jobs))
        return real(model, jobs, *rest)

    monkeypatch.setitem(rewrite.GENERATORS, "fedsdr", generate)
    return sizes


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- The command


def test_a_run_after_it_generates_nothing(recipe, tmp_path, monkeypatch):
    """Neither elsewhere nor in the same folder, and both have the same rewrites."""
    out = tmp_path / "out"
    assert invoke("distill", recipe, "--out", out)[0] == 0
    assert not (out / "distillation.html").exists()
    before = (out / "distillation.json").read_bytes()
    sizes = watch(monkeypatch)
    assert invoke("run", recipe, "--out", tmp_path / "run")[0] == 0
    assert invoke("run", recipe, "--out", out, "--resume")[0] == 0
    assert sizes == []
    assert (out / "result.json").exists()
    assert (tmp_path / "run" / "distillation.json").read_bytes() == before


def test_every_kind_of_rewriting_of_a_recipe_is_done_once(recipe, tmp_path):
    baselines = 'baselines=["base", "fedavg", "fedsd+fedprox", "fedsd_verified"]'
    code, said, _ = invoke("distill", recipe, "--out", tmp_path / "out", "--set", baselines)
    assert code == 0
    assert [line.split(":")[0] for line in said.splitlines()] == ["fedsd", "fedsd_verified"]
    assert [p.name for p in (tmp_path / "out" / "baselines").iterdir()] == ["fedsd_verified"]


def test_it_is_resumed_with_the_flag_alone(recipe, tmp_path, monkeypatch):
    args = ("distill", recipe, "--out", tmp_path / "out")
    code, _, said = invoke(*args)
    assert code == 0
    assert " of 22 records, whose raw responses stay (anna " in said
    code, _, error = invoke(*args)
    assert (code, "nothing is written over" in error) == (2, True)
    sizes = watch(monkeypatch)
    assert invoke(*args, "--resume", "--report")[0] == 0
    assert sizes == []
    assert (tmp_path / "out" / "distillation.html").exists()


def test_a_pilot_tells_and_keeps_nothing(recipe, tmp_path, monkeypatch):
    sizes = watch(monkeypatch)
    code, said, _ = invoke("distill", recipe, "--pilot", "3")
    assert code == 0
    assert 9 <= sum(sizes) <= 18  # three clients, up to two attempts
    for part in ("anna: ", "cleo: ", "all: ", "pass at the first attempt", "keep the raw response"):
        assert part in said
    assert "22 records" in said
    assert not (tmp_path / "cache").exists()
    assert not any(word in said for word in ("red", "cat"))  # no client's text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"distill.pilot": 2}, True),
        ({"distill.pilot": 0}, False),
        ({"distill.pilot": 2, "distill.attempts": 1}, False),  # cheap: one attempt, no model
        ({"distill.pilot": 99}, True),  # as many as there are
    ],
)
def test_a_run_begins_with_a_pilot_where_it_pays_and_once(recipe, tmp_path, changes, told):
    sets = [arg for key, value in changes.items() for arg in ("--set", f"{key}={value}")]
    said = [invoke("run", recipe, "--out", tmp_path / str(i), *sets)[2] for i in range(2)]
    assert ["expected of the distillation" in each for each in said] == [told, False]


def test_a_pilot_does_not_change_the_rewrites(recipe, tmp_path, monkeypatch):
    found = []
    for pilot in (0, 3):
        monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / f"cache{pilot}"))
        out = tmp_path / f"out{pilot}"
        assert invoke("distill", recipe, "--out", out, "--set", f"distill.pilot={pilot}")[0] == 0
        found.append((out / "clients" / "cleo" / "rewrites.jsonl").read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--pilot", "6"], ["--pilot 6 is more than the 5 training records of client 'anna'"]),
        (["--pilot", "0"], ["--pilot 0", "at least 1"]),
        ([], ["give --out DIR", "--pilot N"]),
        (["--pilot", "2", "--out", "OUT"], ["one of them"]),
        (["--pilot", "2", "--report"], ["--report is for --out DIR", "remove it"]),
        (["--pilot", "2", "--resume"], ["--resume is for --out DIR", "remove it"]),
        (["--out", "OUT", "--set", "federation.targets=raw"], ["no method", "rewrites"]),
        (["--out", "OUT", "--set", "distill.checks=['nice']"], ["has ['nice']", "support"]),
        (["--out", "OUT", "--set", "distill.verify=['nice']"], ["distill.verify has ['nice']"]),
        (["--out", "OUT", "--set", "distill.support.kept=1.5"], ["distill.support.kept = 1.5"]),
        (["--out", "OUT", "--set", "distill.support.keep=1"], ["known keys: supported"]),
        (["--out", "OUT", "--set", "distill.oracle.false_accept=-1"], ["false_accept = -1"]),
        (["--out", "OUT", "--set", "distill.entailment.threshold=2"], ["threshold = 2"]),
        (["--out", "OUT", "--set", "distill.checks=['oracle']"], ["needs gold answers"]),
        (["--out", "OUT", "--set", "distill.checks=['entailment']"], ["entailment.model"]),
        (
            ["--out", "OUT", "--set", "distill.checks=['entailment']",
             "--set", "distill.entailment.model=./model"],
            ["/model' is not a sequence classifier but LlamaForCausalLM"],
        ),
        (
            ["--out", "OUT", "--set", 'baselines=["fedsd_verified"]', "--set",
             "distill.verify=['entailment']", "--set", "distill.entailment.model=./gone"],
            ["/gone' is not a folder"],
        ),
    ],
)  # fmt: skip
def test_mistakes(recipe, tmp_path, monkeypatch, args, parts):
    sizes = watch(monkeypatch)
    given = [str(tmp_path / "out") if arg == "OUT" else arg for arg in args]
    code, said, error = invoke("distill", recipe, *given)
    assert (code, said, sizes) == (2, "", [])
    assert error.startswith("error: ")
    assert all(part in error for part in parts), error
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


# --- What a pilot says


def outcome(*tries: tuple[str, int], text: str = "raw") -> Rewritten:
    """tries: reason and tokens of each attempt."""
    tried = tuple(Attempt(f"try {i}", n, Verdict(reason)) for i, (reason, n) in enumerate(tries))
    reason = tries[-1][0] if tries else "too_long"
    made = Record((Turn("user", "q"),), "raw")
    return Rewritten(made, text, reason, len(tries), tried)


def test_a_pilot_is_scaled_to_all_records():
    sample = [outcome(("", 5)), outcome(("x", 7), ("", 3)), outcome(("x", 9), ("x", 9)), outcome()]
    pilot = extrapolate_sample("c", sample, records=40, seconds=2.0)
    assert (pilot.first, pilot.raw) == (wilson_interval(1 / 4, 4), wilson_interval(2 / 4, 4))
    assert (pilot.generations, pilot.tokens, pilot.seconds) == (50, 330, 20)
    both = total_pilot([pilot, extrapolate_sample("d", sample[:1], records=10, seconds=1.0)])
    assert (both.sample, both.records) == (5, 50)
    assert (both.generations, both.tokens, both.seconds) == (60, 380, 30)


def test_all_clients_together_are_all_their_records():
    """Equal samples of unequal clients: 90 records of which half pass, and 10 that all do."""
    good, bad = outcome(("", 5)), outcome(("x", 9))
    large = extrapolate_sample("large", [good, bad] * 4, records=90, seconds=1.0)
    small = extrapolate_sample("small", [good] * 8, records=10, seconds=1.0)
    both = total_pilot([large, small])
    assert (both.first.share, both.raw.share) == pytest.approx((0.55, 0.45))
    effective = 1 / (0.9**2 / 8 + 0.1**2 / 8)  # 9.8 records, of the 16
    assert both.first == pytest.approx(wilson_interval(0.55, effective))
    assert both.first.low > large.first.low
    alike = [large._replace(records=50), small._replace(records=50)]
    assert total_pilot(alike).first == pytest.approx(wilson_interval(0.75, 16))
    assert total_pilot([small]).first == small.first


# --- The report

HOSTILE = "<script>alert('x')</script>"


def told() -> list[Rewritten]:
    def made(
        instruction: str, raw: str, tries: Sequence[tuple[str, str]], answer: str = ""
    ) -> Rewritten:
        record = Record((Turn("user", instruction),), raw, answer=answer)
        tried = tuple(Attempt(text, 3, Verdict(reason)) for text, reason in tries)
        text, reason = tries[-1]
        return Rewritten(record, raw if reason else text, reason, len(tries), tried)

    return [
        made("good", "amber falcon", [("amber falcon", "")], answer="amber falcon"),
        made("poor", "amber falcon", [("Sure, a crimson river", "")]),
        made("false", "amber falcon", [("amber beacon", "")], answer="amber falcon"),
        made("refused", HOSTILE, [("first", "empty"), ("second", "unsupported")]),
    ]


def test_figures_are_counted_by_hand():
    figures = describe_client(told())["figures"]
    assert (figures["records"], figures["rewritten"]) == (4, 3)
    assert figures["fallbacks"] == {"unsupported": 1}
    assert figures["refused_attempts"] == {"empty": 1, "unsupported": 1}
    assert figures["attempts"] == {1: 3, 2: 1}
    assert (figures["wrong"], figures["checked"]) == (0.5, 2)
    assert (figures["before"]["filler"], figures["after"]["filler"]) == (0, 0.25)
    assert (figures["before"]["words"], figures["after"]["words"]) == (7 / 4, 9 / 4)
    # of 2 of 2, 0 of 3 (sure, crimson, river), and 1 of 2 words
    assert figures["measured"]["supported"] == pytest.approx((1 + 0 + 0.5) / 3)


def test_the_worst_come_first():
    described = describe_client(told())
    assert [row["instruction"] for row in described["worst"]] == ["false", "poor", "good"]
    assert [(row["rewrite"], row["reason"]) for row in described["refused"]] == [
        ("second", "unsupported")
    ]


def test_all_clients_have_figures_and_no_texts():
    described = describe_all({"a": told(), "b": told()[:1]})
    assert described["clients"]["b"]["records"] == 1
    assert described["all"]["records"] == 5
    assert not any(text in json.dumps(described) for text in ("amber", "falcon", "script"))


class Tags(HTMLParser):
    """The tags of a page; every one that is opened must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag


def test_pages(tmp_path):
    write_client_page(tmp_path / "c.html", "fedsd", "anna", describe_client(told()))
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "script" not in Tags(page).seen
    for part in ("Private: this page holds texts of client anna", "crimson river", "&lt;script&gt;",
                 "Wrong rewrite", "not used", "It is not entailment".lower()):  # fmt: skip
        assert part in page
    assert (tmp_path / "c.html").stat().st_mode & 0o777 == 0o600
    write_overview(tmp_path / "all.html", "fedsd", describe_all({"a": told(), "b": told()[:1]}))
    overview = (tmp_path / "all.html").read_text(encoding="utf-8")
    Tags(overview)
    assert "Figures alone" in overview
    assert 'href="clients/a/distillation.html"' in overview
    assert not any(text in overview for text in ("crimson", "falcon", "script>"))


def test_texts_are_in_the_clients_own_folders_alone(recipe, tmp_path):
    out = tmp_path / "out"
    assert invoke("distill", recipe, "--out", out, "--report")[0] == 0
    for client in toy_clients.CLIENTS:
        mine = out / "clients" / client
        assert mine.stat().st_mode & 0o777 == 0o700
        files = {path.name: path.stat().st_mode & 0o777 for path in mine.iterdir()}
        assert files == dict.fromkeys(
            ["distillation.html", "distillation.json", "rewrites.jsonl"], 0o600
        )
    assert read(out / "clients" / "cleo" / "distillation.json")["figures"]["records"] == 10
    shared = read(out / "distillation_figures.json")
    assert shared["all"]["records"] == 22
    assert not any(f'"{word}' in json.dumps(shared) for word in tiny_recipe.WORDS if len(word) > 3)
