"""The distillation's own report: an overview of figures, and a client's page with its texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.files import write_text
from fedsdr.report import labels, palette, text
from fedsdr.report.html import environment

TEMPLATE = "distillation.html.jinja"
Row = Mapping[str, Any]


def write_overview(path: Path, method: str, described: Row) -> None:
    """All clients' figures; no text of theirs."""
    clients: Mapping[str, Row] = described["clients"]
    columns = {**clients, "All clients": described["all"]} if len(clients) > 1 else dict(clients)
    head = {"title": f"Distillation: {labels.method(method).label}", "private": ""}
    pages = {name: f"clients/{name}/distillation.html" for name in clients}
    write_text(path, _render(head, columns, pages, [], []))


def write_client_page(path: Path, method: str, client: str, described: Row) -> None:
    """One client's figures and texts, readable by its owner alone."""
    head = {"title": f"Distillation of {client}: {labels.method(method).label}", "private": client}
    worst, refused = ([_pair(row) for row in described[key]] for key in ("worst", "refused"))
    html = _render(head, {client: described["figures"]}, {}, worst, refused)
    write_text(path, html, private=True)


def _render(
    head: Row,
    columns: Mapping[str, Row],
    pages: Mapping[str, str],
    worst: Sequence[Row],
    refused: Sequence[Row],
) -> str:
    return environment().get_template(TEMPLATE).render(
        head=head, columns=list(columns), rows=_table(list(columns.values())), pages=pages,
        worst=worst, refused=refused, palette=palette,
    )  # fmt: skip


def _table(figures: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """(label, a cell for each column): what every client has, then what only some have."""
    rows = {
        "Records": [text.fixed(f["records"], 0) for f in figures],
        "Rewritten": [_share(f["rewritten"], f["records"]) for f in figures],
        "Attempts a record": [_attempts(f) for f in figures],
        "Words a response": [_change(f, "words", 1) for f in figures],
        "With filler": [_change(f, "filler") for f in figures],
        "Repetitive": [_change(f, "repetitive") for f in figures],
        "Wrong, of accepted with a known answer": [text.share(f["wrong"]) for f in figures],
    }
    for name in sorted({name for f in figures for name in f["measured"]}):
        label = f"Mean of accepted: {labels.measure(name)}"
        rows[label] = [text.fixed(f["measured"].get(name), 2) for f in figures]
    for key, what in (("fallbacks", "Raw kept"), ("refused_attempts", "Attempts refused")):
        for reason in sorted({reason for f in figures for reason in f[key]}):
            label = f"{what}: {labels.reason(reason)}"
            rows[label] = [text.fixed(f[key].get(reason, 0), 0) for f in figures]
    return list(rows.items())


def _attempts(figures: Row) -> str:
    total = sum(int(tries) * count for tries, count in figures["attempts"].items())
    return text.fixed(total / figures["records"] if figures["records"] else None, 2)


def _share(part: int, whole: int) -> str:
    return text.share(part / whole if whole else None)


def _change(figures: Row, name: str, digits: int | None = None) -> str:
    """Before and after; shares without `digits`."""
    if not figures["before"]:
        return text.EN_DASH
    pair = (figures["before"][name], figures["after"][name])
    return " \N{RIGHTWARDS ARROW} ".join(
        text.share(value) if digits is None else text.fixed(value, digits) for value in pair
    )


def _pair(row: Row) -> dict[str, Any]:
    """A record as the macro `pair` shows it; what was measured stands in the client's place."""
    found = [f"{labels.measure(name)} {text.fixed(x, 2)}" for name, x in row["measured"].items()]
    tries = text.plural(len(row["reasons"]), "attempt")
    return {
        "client": ", ".join([tries, *found]),
        "instruction": row["instruction"],
        "raw": row["raw"],
        "rewrite": row["rewrite"],
        "wrong": row["wrong"] is True,
        "right": row["wrong"] is False and not row["reason"],
        "kept_raw": bool(row["reason"]),
        "why": labels.reason(row["reason"]) if row["reason"] else "",
    }
