"""The diagnostics on real rewrites: 2,000 responses of Alpaca, rewritten by Llama-2-7B-chat."""

import json
import os
from pathlib import Path
from typing import Final

from fedsdr.diagnose.clusters import pseudo_clients
from fedsdr.diagnose.paired import Comparison, compare_pairs
from fedsdr.evaluate.intervals import estimate, paired_difference
from fedsdr.evidence.chapter import Chapter, Claim, Condition, Table, shown
from fedsdr.evidence.results import Results

CLUSTERINGS: Final = (0, 1, 2, 3, 4)
GROUPS: Final = 5
Sides = dict[str, tuple[list[float], list[float]]]  # measure -> (before, after)


def real_text(results: Results) -> Chapter:
    """Read from `$FEDSDR_DATA/paired`; a chapter of one sentence where that is not there."""
    folder = Path(os.environ.get("FEDSDR_DATA", "")) / "paired"
    title = "Real text"
    if not (folder / "alpaca_raw.json").exists():
        return Chapter(title, "Not measured: $FEDSDR_DATA names no folder with paired/.")
    found = compare(folder)
    sides = _sides(found)

    def moved(name: str, positive: bool) -> Condition:
        before, after = sides[name]
        return Condition(f"{name}, rewritten - raw", paired_difference(after, before), positive)

    return Chapter(
        title,
        f"{found[0].pairs} pairs of Alpaca responses and their rewrites by Llama-2-7B-chat "
        f"(sail-sg/sdft), {found[0].fallbacks} of them the raw response itself. Groups are "
        f"{GROUPS} clusters of the instructions, by TF-IDF; the intervals are over five "
        "clusterings, not over data. `thinned` is at equal word counts, `chance` the same for "
        "groups dealt by chance: what is left beyond chance is how far groups really lie apart.",
        [
            Claim(
                "Rewrites are longer and fuller of fillers",
                [moved("words", True), moved("filler", True)],
            ),
            Claim(
                "Rewriting brings groups together: JS falls, TF-IDF cosine rises",
                [moved("js", False), moved("tfidf_cosine", True)],
            ),
            Claim(
                "Rewriting brings groups together at equal word counts",
                [moved("thinned js", False), moved("thinned tfidf_cosine", True)],
            ),
        ],
        [("Before and after", _table(sides))],
    )


def _sides(found: list[Comparison]) -> Sides:
    """Each measure before and after, a number a clustering."""
    rows = [each.rows() for each in found]
    return {
        name: ([each[i][1] for each in rows], [each[i][2] for each in rows])
        for i, (name, *_) in enumerate(rows[0])
    }


def _table(sides: Sides) -> Table:
    rows = [
        [
            name,
            shown(estimate(before), 4),
            shown(estimate(after), 4),
            shown(paired_difference(after, before), 4, sign=True),
        ]
        for name, (before, after) in sides.items()
    ]
    return Table(["", "raw", "rewritten", "difference"], rows)


def compare(folder: Path) -> list[Comparison]:
    """One comparison a clustering."""
    raw = json.loads((folder / "alpaca_raw.json").read_text(encoding="utf-8"))
    new = json.loads((folder / "alpaca_distilled_llama2_7b_chat.json").read_text(encoding="utf-8"))
    asked = [f"{row['instruction']} {row['input']}".strip() for row in raw]
    before, after = ([row["output"] for row in side] for side in (raw, new))
    return [
        compare_pairs(before, after, pseudo_clients(asked, GROUPS, seed)) for seed in CLUSTERINGS
    ]
