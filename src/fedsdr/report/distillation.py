"""The distillation's own report: an overview of figures, and a client's page with its texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.core.files import write_text
from fedsdr.core.notices import plural_form
from fedsdr.report import labels, palette, text
from fedsdr.report.html import template_environment

TEMPLATE = "distillation.html.jinja"
RewriteRow = Mapping[str, Any]


def write_overview(path: Path, method: str, described: RewriteRow) -> None:
    """All clients' figures; no text of theirs."""
    clients: Mapping[str, RewriteRow] = described["clients"]
    columns = {**clients, "All clients": described["all"]} if len(clients) > 1 else dict(clients)
    head = {"title": f"Distillation: {labels.method_label(method).label}", "private": ""}
    pages = {name: f"clients/{name}/distillation.html" for name in clients}
    write_text(path, _render(head, columns, pages, [], []))


def write_client_page(path: Path, method: str, client: str, described: RewriteRow) -> None:
    """One client's figures and texts, readable by its owner alone."""
    head = {
        "title": f"Distillation of {client}: {labels.method_label(method).label}",
        "private": client,
    }
    worst, refused = ([_pair(row) for row in described[key]] for key in ("worst", "refused"))
    html = _render(head, {client: described["figures"]}, {}, worst, refused)
    write_text(path, html, private=True)


def _render(
    head: RewriteRow,
    columns: Mapping[str, RewriteRow],
    pages: Mapping[str, str],
    worst: Sequence[RewriteRow],
    refused: Sequence[RewriteRow],
) -> str:
    return template_environment().get_template(TEMPLATE).render(
        head=head, columns=list(columns), rows=_table(list(columns.values())), pages=pages,
        worst=worst, refused=refused, palette=palette,
    )  # fmt: skip


def _table(figures: Sequence[RewriteRow]) -> list[tuple[str, list[str]]]:
    """(label, a cell for each column): what every client has, then what only some have."""
    rows = {
        "Records": [text.format_fixed(f["records"], 0) for f in figures],
        "Rewritten": [_share(f["rewritten"], f["records"]) for f in figures],
        "Attempts a record": [_attempts(f) for f in figures],
        "Words a response": [_change(f, "words", 1) for f in figures],
        "With filler": [_change(f, "filler") for f in figures],
        "Repetitive": [_change(f, "repetitive") for f in figures],
        "Wrong, of accepted with a known answer": [text.format_share(f["wrong"]) for f in figures],
    }
    for name in sorted({name for f in figures for name in f["measured"]}):
        label = f"Mean of accepted: {labels.measure_label(name)}"
        rows[label] = [text.format_fixed(f["measured"].get(name), 2) for f in figures]
    for key, what in (("fallbacks", "Raw kept"), ("refused_attempts", "Attempts refused")):
        for reason in sorted({reason for f in figures for reason in f[key]}):
            label = f"{what}: {labels.reason_label(reason)}"
            rows[label] = [text.format_fixed(f[key].get(reason, 0), 0) for f in figures]
    return list(rows.items())


def _attempts(figures: RewriteRow) -> str:
    total = sum(int(tries) * count for tries, count in figures["attempts"].items())
    return text.format_fixed(total / figures["records"] if figures["records"] else None, 2)


def _share(part: int, whole: int) -> str:
    return text.format_share(part / whole if whole else None)


def _change(figures: RewriteRow, name: str, digits: int | None = None) -> str:
    """Before and after; shares without `digits`."""
    if not figures["before"]:
        return text.EN_DASH
    pair = (figures["before"][name], figures["after"][name])
    return " \N{RIGHTWARDS ARROW} ".join(
        text.format_share(value) if digits is None else text.format_fixed(value, digits)
        for value in pair
    )


def _pair(row: RewriteRow) -> dict[str, Any]:
    """A record as the macro `pair` shows it; what was measured stands in the client's place."""
    found = [
        f"{labels.measure_label(name)} {text.format_fixed(x, 2)}"
        for name, x in row["measured"].items()
    ]
    tries = plural_form(len(row["reasons"]), "attempt")
    return {
        "client": ", ".join([tries, *found]),
        "instruction": row["instruction"],
        "raw": row["raw"],
        "rewrite": row["rewrite"],
        "wrong": row["wrong"] is True,
        "right": row["wrong"] is False and not row["reason"],
        "kept_raw": bool(row["reason"]),
        "why": labels.reason_label(row["reason"]) if row["reason"] else "",
    }
