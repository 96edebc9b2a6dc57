"""Folders of runs with made-up results, and their pages as a browser reads them."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fedsdr.report.html import write_report

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
        "inventions": 5,
    }
    pair = {"client": "remedy", "raw": HOSTILE, "rewrite": "b", "source": "rewritten", "reason": ""}
    pairs = [pair | {"instruction": f"{HOSTILE} {i}", "wrong": i in (3, 5)} for i in range(15)]
    return {"clients": {"remedy": client, "founder": client | {"records": 300}}, "pairs": pairs}


def minimal(folder: Path, **more: Any) -> Path:
    summary = {"kind": "run", "name": "one", "own": "fedsdr", "seeds": [0], "seconds": 3.0}
    write(folder / "summary.json", summary | {"methods": {}, "runs": {}, "claims": []} | more)
    return folder


def read(folder: Path) -> tuple[str, Page]:
    path = write_report(folder)
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    return html, Page(html)
