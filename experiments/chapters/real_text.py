"""The diagnostics on real rewrites: 2,000 responses of Alpaca, rewritten by Llama-2-7B-chat."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from experiments.chapter import Chapter, Table, format_estimate
from experiments.paired import PairedComparison, compare_pairs
from experiments.results import Results
from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.core.statistics import Estimate, paired_difference, t_interval
from fedsdr.data.partition import cluster_texts
from fedsdr.diagnosis.text import TextStats, text_stats
from fedsdr.evaluate.verdicts import Claim, Condition

CLUSTERINGS: Final = (0, 1, 2, 3, 4)
GROUPS: Final = 5
Sides = dict[str, tuple[list[float], list[float]]]  # measure -> (before, after)


def real_text_chapter(results: Results) -> Chapter:
    """Read from `$FEDSDR_DATA/paired`; a chapter of one sentence where that is not there."""
    folder = Path(os.environ.get("FEDSDR_DATA", "")) / "paired"
    title = "Real text"
    if not (folder / "alpaca_raw.json").exists():
        return Chapter(title, "Not measured: $FEDSDR_DATA names no folder with paired/.")
    found = compare_clusterings(folder)
    sides = _sides(found)

    def moved(name: str, positive: bool) -> Condition:
        before, after = sides[name]
        return Condition(f"{name}, rewritten - raw", paired_difference(after, before), positive)

    def beyond_chance(name: str, positive: bool) -> Condition:
        own, chance = (_moves(sides[f"{kind} {name}"]) for kind in ("thinned", "chance"))
        return Condition(f"{name}, beyond chance", paired_difference(own, chance), positive)

    return Chapter(
        title,
        f"{found[0].pairs} pairs of Alpaca responses and their rewrites by Llama-2-7B-chat "
        f"(sail-sg/sdft), {found[0].fallbacks} of them the raw response itself. Groups are "
        f"{GROUPS} clusters of the instructions, by TF-IDF; intervals of how far groups lie apart "
        "are over five clusterings of the same pairs and not over data, those of words and fillers "
        "over responses. `thinned` is at "
        "equal word counts, `chance` the same for groups formed by chance.",
        [
            Claim("Rewrites are longer and fuller of fillers", _style(folder)),
            Claim(
                "Rewriting brings groups together: JS falls, TF-IDF cosine rises",
                [moved("js", False), moved("tfidf_cosine", True)],
            ),
            Claim(
                "Rewriting brings groups together at equal word counts",
                [moved("thinned js", False), moved("thinned tfidf_cosine", True)],
            ),
            Claim(
                "Rewriting brings groups together at equal word counts, by more than groups formed "
                "by chance come together",
                [beyond_chance("js", False), beyond_chance("tfidf_cosine", True)],
            ),
        ],
        [("Before and after", _table(sides))],
    )


def _moves(side: tuple[list[float], list[float]]) -> list[float]:
    """By how much a measure changes, clustering by clustering."""
    return [after - before for before, after in zip(*side, strict=True)]


def _style(folder: Path) -> list[Condition]:
    """Words and fillers of each response and its rewrite."""
    _, *sides = _texts(folder)
    raw, new = ([text_stats([text]) for text in texts] for texts in sides)
    measures: dict[str, Callable[[TextStats], float]] = {
        "words": lambda stats: stats.words,
        "share with a filler": lambda stats: stats.filler,
    }
    return [
        Condition(
            f"{name}, rewritten - raw",
            paired_difference([*map(measure, new)], [*map(measure, raw)]),
        )
        for name, measure in measures.items()
    ]


def _sides(found: list[PairedComparison]) -> Sides:
    """Each measure before and after, a number a clustering."""
    rows = [each.rows() for each in found]
    return {
        name: ([each[i][1] for each in rows], [each[i][2] for each in rows])
        for i, (name, *_) in enumerate(rows[0])
    }


def _spread(found: Estimate, sign: bool = False) -> str:
    """As `shown`; what no clustering changes has no interval."""
    if found["low"] == found["high"]:
        return f"{found['mean']:{'+' if sign else ''}.4f}"
    return format_estimate(found, 4, sign)


def _table(sides: Sides) -> Table:
    rows = [
        [
            name,
            _spread(t_interval(before)),
            _spread(t_interval(after)),
            _spread(paired_difference(after, before), sign=True),
        ]
        for name, (before, after) in sides.items()
    ]
    return Table(["", "raw", "rewritten", "difference"], rows)


def compare_clusterings(folder: Path) -> list[PairedComparison]:
    """One comparison a clustering."""
    asked, before, after = _texts(folder)
    return [
        compare_pairs(before, after, pseudo_clients(asked, GROUPS, seed), seed)
        for seed in CLUSTERINGS
    ]


def _texts(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Instructions, responses and rewrites."""
    raw, new = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("alpaca_raw.json", "alpaca_distilled_llama2_7b_chat.json")
    )
    asked = [f"{row['instruction']} {row['input']}".strip() for row in raw]
    return asked, [row["output"] for row in raw], [row["output"] for row in new]


def pseudo_clients(instructions: Sequence[str], clusters: int, seed: int) -> list[int]:
    """A label below `clusters` for each instruction, as split.by = "dirichlet" groups records."""
    if not instructions or clusters < 1:
        raise UserError(
            f"clusters = {clusters} of {len(instructions)} instructions: at least 1 of each"
        )
    return cluster_texts(
        instructions, clusters, np.random.default_rng(seeds.derive_seed(seed, "clusters"))
    )
