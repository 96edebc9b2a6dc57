"""The sections in words: the head of the page, the claims, the table of scores.

A section whose files are missing is None, and the template leaves it out.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fedsdr.core.notices import plural_form
from fedsdr.report import labels, tables, text
from fedsdr.report.advice import advise_methods
from fedsdr.report.charts import FACTS, KEPT
from fedsdr.report.load import Material
from fedsdr.report.palette import Style


def head_section(material: Material) -> dict[str, Any]:
    """What ran."""
    runs = [run.rounds for method in material.methods for run in method.runs]
    last = max((row.index for run in runs for row in run), default=0)
    trained = {client for run in runs for row in run for client in row.clients}
    clients = len(material.partition) or len(trained)
    duration = "Duration since resumed" if material.resumed else "Duration"
    facts = {
        "Rounds": str(last or ""),
        "Clients": str(clients or ""),
        "Seed" if len(material.seeds) == 1 else "Seeds": ", ".join(map(str, material.seeds)),
        duration: "" if material.seconds is None else text.format_duration(material.seconds),
    }
    own = labels.method_label(material.own)
    seeds = plural_form(len(material.seeds), "seed")
    methods = plural_form(len(material.methods), "method")
    what = {
        "compare": f"Comparison of {methods} over {seeds}",
        "run": f"One run of {own.label}",
    }
    return {
        "name": material.name or "Report",
        "what": what.get(material.kind, "Report"),
        "seeds": len(material.seeds),
        "facts": {name: value for name, value in facts.items() if value},
        "privacy": material.privacy,
        "pending": material.pending,
    }


def claims_section(material: Material) -> dict[str, Any] | None:
    """The claims with a summary of their verdicts."""
    if not material.claims:
        return None
    counts = Counter(claim.verdict for claim in material.claims)
    forms = {"holds": ("holds", "hold"), "fails": ("does not", "do not"), "open": ("is", "are")}
    words = []
    for verdict, (one, many) in forms.items():
        if count := counts[verdict]:
            verb = one if count == 1 else many
            words.append(f"{count} {verb} open" if verdict == "open" else f"{count} {verb}")
    asked = plural_form(len(material.claims), "claim")
    return {
        "claims": material.claims,
        "verdicts": labels.VERDICTS,
        "summary": f"Of {asked}, {text.join_words(words)}.",
    }


def scores_section(material: Material, styles: Mapping[str, Style]) -> dict[str, Any] | None:
    """The tables of scores, of the global model, the clients' own and by client."""
    found = {name for method in material.methods for name in method.scores}
    if not found:
        return None
    names = labels.ordered_names(found, labels.METRIC_LABELS)
    plain = [name for name in names if "/" not in name]
    own = [name for name in plain if labels.is_personal(name)]
    per_client = [name for name in names if "/" in name]
    shared = [name for name in plain if name not in own]
    groups = (("The shared global model", shared), ("The clients' own models", own))
    shown = [
        (title, tables.score_table(material, group, styles)) for title, group in groups if group
    ]
    return {
        "tables": shown,
        "marked": any(cell.best for _, table in shown for row in table.rows for cell in row.cells),
        "per_client": tables.score_table(material, per_client, styles) if per_client else None,
        "glossary": [labels.metric_label(name) for name in plain if not labels.is_personal(name)],
        "methods": [
            (labels.method_label(each.name), styles[each.name]) for each in material.methods
        ],
        "trade_off": {FACTS, KEPT} <= found,
        "advice": advise_methods(material),
    }
