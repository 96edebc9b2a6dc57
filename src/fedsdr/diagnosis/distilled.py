"""The effect of a distillation on the responses: figures, and the worst rewrites."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from fedsdr.diagnosis.text import has_filler, text_stats
from fedsdr.distillation.rewrite import Rewritten
from fedsdr.distillation.support import kept_share, rare_words, supported_share

WORST_SHOWN: Final = 25  # of the accepted rewrites, and of the refused ones
RARE: Final = 0.01  # as `[distill.support]` has it
RatedRewrite = dict[str, Any]


def describe_all(rewrites: Mapping[str, Sequence[Rewritten]]) -> RatedRewrite:
    """Figures of each client and of all; no text of a client is among them."""
    rows = {client: rate_rewrites(each) for client, each in rewrites.items()}
    everything = [row for each in rows.values() for row in each]
    return {
        "clients": {client: rewrite_figures(each) for client, each in rows.items()},
        "all": rewrite_figures(everything),
    }


def describe_client(rewrites: Sequence[Rewritten]) -> RatedRewrite:
    """One client's figures, and its accepted and refused rewrites side by side, worst first."""
    rows = rate_rewrites(rewrites)
    accepted = sorted((row for row in rows if not row["reason"]), key=badness_key)
    refused = sorted((row for row in rows if row["reason"]), key=lambda row: row["reason"])
    return {
        "figures": rewrite_figures(rows),
        "worst": accepted[:WORST_SHOWN],
        "refused": refused[:WORST_SHOWN],
    }


def rate_rewrites(rewrites: Sequence[Rewritten]) -> list[RatedRewrite]:
    """A row a record. rewrite: the text kept, or the last one refused ("" where none was made).

    measured: what the gate measured of that text, and its lexical support in any case.
    """
    rare = rare_words([r.record for r in rewrites], RARE)
    rows = []
    for r in rewrites:
        shown = r.shown
        text = shown.text if shown else ""
        lexical = {
            "supported": supported_share(r.record, text),
            "kept": kept_share(r.record, text, rare),
        }
        rows.append(
            {
                "instruction": r.record.instruction,
                "raw": r.record.response,
                "rewrite": text,
                "target": r.text,
                "reason": r.reason,
                "reasons": [a.verdict.reason for a in r.tried],
                "wrong": r.wrong,
                "measured": {**lexical, **(shown.verdict.measured if shown else {})},
            }
        )
    return rows


def badness_key(row: RatedRewrite) -> tuple[bool, float, float]:
    """Wrong ones first, then by the lowest of what was measured, then the longest."""
    growth = len(row["rewrite"].split()) / max(1, len(row["raw"].split()))
    return (row["wrong"] is not True, min(row["measured"].values()), -growth)


def rewrite_figures(rows: Sequence[RatedRewrite]) -> RatedRewrite:
    """Counts and means. before and after are of all targets, refused rewrites being raw ones;
    measured and wrong are of accepted rewrites."""
    accepted = [row for row in rows if not row["reason"]]
    names = sorted({name for row in accepted for name in row["measured"]})
    checked = [row["wrong"] for row in accepted if row["wrong"] is not None]
    return {
        "records": len(rows),
        "rewritten": len(accepted),
        "fallbacks": dict(Counter(row["reason"] for row in rows if row["reason"]).most_common()),
        "attempts": dict(sorted(Counter(len(row["reasons"]) for row in rows).items())),
        "refused_attempts": dict(
            Counter(reason for row in rows for reason in row["reasons"] if reason).most_common()
        ),
        "before": text_stats([row["raw"] for row in rows])._asdict() if rows else {},
        "after": text_stats([row["target"] for row in rows])._asdict() if rows else {},
        "new_filler": sum(has_filler(row["target"]) and not has_filler(row["raw"]) for row in rows),
        "wrong": fmean(checked) if checked else None,
        "checked": len(checked),
        "measured": {
            name: fmean(row["measured"][name] for row in accepted if name in row["measured"])
            for name in names
        },
    }
