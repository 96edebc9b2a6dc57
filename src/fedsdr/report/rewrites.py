"""Each client's rewrites, summed over seeds, and examples of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fedsdr.report import labels, text
from fedsdr.report.load import Material, MethodRuns, finite_number

SHOWN_PAIRS = 20
SHOWN_WRONG = 12  # of them at most, where there are others: the page must not look worse than it is


class RewriteCounts(NamedTuple):
    """Of all clients and seeds; wrong: the share of the accepted rewrites that are known to be
    right or wrong, None where none is."""

    records: float
    rewritten: float
    wrong: float | None


@dataclass(frozen=True)
class RewriteGroup:
    """One set of rewrites and the methods that train on it.

    words: what became of the raw responses, in sentences.
    """

    methods: tuple[str, ...]
    words: str
    clients: tuple[dict[str, Any], ...]
    pairs: tuple[Mapping[str, Any], ...]


def rewrite_groups(material: Material) -> list[RewriteGroup]:
    """Methods whose rewrites are the same share a group; the own method's group is first."""
    found: list[RewriteGroup] = []
    for method in sorted(material.methods, key=lambda each: each.name != material.own):
        words, clients, pairs = _words(method), tuple(_clients(method)), tuple(_pairs(method))
        if not clients and not pairs:
            continue
        label = labels.method_label(method.name).short
        same = [i for i, old in enumerate(found) if (old.clients, old.pairs) == (clients, pairs)]
        if same:
            old = found[same[0]]
            found[same[0]] = replace(old, methods=(*old.methods, label))
        else:
            found.append(RewriteGroup((label,), words, clients, pairs))
    return found


def count_rewrites(method: MethodRuns) -> RewriteCounts:
    reports = _reports(method)
    wrong = _mean(reports, "wrong", "checked")
    return RewriteCounts(_sum(reports, "records"), _sum(reports, "rewritten"), wrong)


def _reports(method: MethodRuns) -> list[Mapping[str, Any]]:
    """Each client's of each seed."""
    return [
        report for run in method.runs for report in (run.distillation.get("clients") or {}).values()
    ]


def _clients(method: MethodRuns) -> list[dict[str, Any]]:
    """A row a client, then all together where there is more than one."""
    reports: dict[str, list[Mapping[str, Any]]] = {}
    for run in method.runs:
        for name, report in (run.distillation.get("clients") or {}).items():
            reports.setdefault(str(name), []).append(report)
    rows = [_row(name, found) for name, found in reports.items()]
    everything = [report for found in reports.values() for report in found]
    return [*rows, _row("All clients", everything) | {"all": True}] if len(rows) > 1 else rows


def _words(method: MethodRuns) -> str:
    """What the Rewrite Paradox looks like here: how many rewrites pass, and what is wrong with
    those that do. "" where nothing is known."""
    reports, (records, rewritten, wrong) = _reports(method), count_rewrites(method)
    if not records:
        return ""
    checked = _sum(reports, "checked")
    words = [
        f"The base model was asked to rewrite {text.format_fixed(records, 0)} responses;"
        f" {text.format_fixed(rewritten, 0)} rewrites"
        f" ({text.format_share(rewritten / records)}) passed the checks."
    ]
    if wrong is not None:
        words.append(
            f"Of {text.format_fixed(checked, 0)} of these the right answer is known, and"
            f" {text.format_fixed(wrong * checked, 0)} ({text.format_share(wrong)}) are wrong:"
            " training on them teaches what no client has written."
        )
    if any("inventions" in report for report in reports):
        words.append(
            f"{text.format_fixed(_sum(reports, 'inventions'), 0)} of the rewrites that passed have "
            "a name or number that is in neither prompt nor raw response."
        )
    raw, new = _mean(reports, "raw_words", "records"), _mean(reports, "rewrite_words", "records")
    if raw and new:
        words.append(
            f"A response has {text.format_fixed(raw)} words before and {text.format_fixed(new)} "
            "after rewriting."
        )
    return " ".join(words)


def _row(name: str, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    records = _sum(reports, "records")
    rewritten = _sum(reports, "rewritten")
    fallbacks: Counter[str] = Counter()
    for report in reports:
        fallbacks.update(report.get("fallbacks") or {})
    wrong = _mean(reports, "wrong", "checked")
    return {
        "name": name,
        "all": False,
        "records": text.format_fixed(records, 0),
        "rewritten": text.format_share(rewritten / records if records else None),
        "fallbacks": _reasons(fallbacks),
        "attempts": text.format_fixed(_sum(reports, "attempts") / records if records else None, 2),
        "raw_words": text.format_fixed(_mean(reports, "raw_words", "records")),
        "rewrite_words": text.format_fixed(_mean(reports, "rewrite_words", "records")),
        "wrong": text.format_share(wrong),
        "wrong_width": round(100 * wrong, 1) if wrong is not None else None,
    }


def _reasons(counts: Mapping[str, int]) -> str:
    """Most frequent first: "cut off 6, repeats itself 4"."""
    order = sorted(counts, key=lambda name: (-counts[name], name))
    return ", ".join(
        f"{labels.reason_label(name)} {counts[name]}" for name in order if counts[name]
    )


def _sum(reports: Iterable[Mapping[str, Any]], key: str) -> float:
    return sum(finite_number(report.get(key)) or 0.0 for report in reports)


def _mean(reports: Iterable[Mapping[str, Any]], key: str, weight: str) -> float | None:
    """The mean of `key` weighted by `weight`, over the reports that know both."""
    found = [
        (finite_number(report.get(key)), finite_number(report.get(weight))) for report in reports
    ]
    known = [(value, count) for value, count in found if value is not None and count]
    total = sum(count for _, count in known)
    return sum(value * count for value, count in known) / total if total else None


def _pairs(method: MethodRuns) -> list[Mapping[str, Any]]:
    """Examples from the first run that has some: wrong rewrites first, then the clients in turn."""
    runs = [list(run.distillation.get("pairs") or ()) for run in method.runs]
    pairs = next(filter(None, runs), [])
    seen: Counter[tuple[bool, str]] = Counter()
    places = []
    for index, pair in enumerate(pairs):
        wrong, client = pair.get("wrong") is True, str(pair.get("client", ""))
        places.append((not wrong, seen[wrong, client], index))
        seen[wrong, client] += 1
    order = [index for _, _, index in sorted(places)]
    wrong_ones = [index for index in order if pairs[index].get("wrong") is True]
    others = [index for index in order if pairs[index].get("wrong") is not True]
    shown = wrong_ones[: max(SHOWN_WRONG, SHOWN_PAIRS - len(others))]
    chosen = [*shown, *others[: SHOWN_PAIRS - len(shown)]]
    return [_pair(pairs[index]) for index in chosen]


def _pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    kept_raw = pair.get("source") == "raw"
    text_gone = kept_raw and pair.get("rewrite") == pair.get("raw")  # only the target was stored
    why = labels.reason_label(str(pair.get("reason") or ""))
    return {
        "client": str(pair.get("client", "")),
        "instruction": str(pair.get("instruction", "")),
        "raw": str(pair.get("raw", "")),
        "rewrite": "" if text_gone else str(pair.get("rewrite", "")),
        "wrong": pair.get("wrong") is True,
        "right": pair.get("wrong") is False and not kept_raw,
        "kept_raw": kept_raw,
        "why": why if kept_raw else "",
    }
