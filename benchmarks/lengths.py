"""How long instructions, responses and their rewrites really are.

Read from $FEDSDR_DATA (by default `shared/data` beside the project's own folder): the pairs of
Alpaca's responses and Llama-2-7B-chat's rewrites of them. Where they are not, lengths are drawn
between the quantiles of those, response and rewrite at one rank, the instruction at another.
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import NamedTuple

DATA = Path(os.environ.get("FEDSDR_DATA", Path(__file__).parents[2] / "shared" / "data"))
FILES = ("alpaca_raw.json", "alpaca_distilled_llama2_7b_chat.json")
QUANTILES = {  # minimum, 10, 25, 50, 75 and 90 %, maximum; characters
    "instruction": (17, 37, 46, 61, 101, 168, 800),
    "response": (1, 25, 53, 184, 426, 628, 2178),
    "rewrite": (1, 47, 122, 477, 967, 1730, 2648),
}
RANKS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Lengths(NamedTuple):
    """Characters of one record."""

    instruction: int
    response: int
    rewrite: int


def source() -> str:
    """What lengths are of, for the results."""
    return "real files" if all(path.exists() for path in _paths()) else "synthetic"


def records(count: int, seed: int = 0) -> list[Lengths]:
    """So many records, drawn by seed."""
    draw = random.Random(seed)
    if source() == "synthetic":
        print(f"lengths are synthetic: no paired/ in {DATA}, set FEDSDR_DATA", file=sys.stderr)
        return [_synthetic(draw) for _ in range(count)]
    raw, rewritten = (json.loads(path.read_text(encoding="utf-8")) for path in _paths())
    found = [
        Lengths(len(a["instruction"]) + len(a["input"]), len(a["output"]), len(b["output"]))
        for a, b in zip(raw, rewritten, strict=True)
    ]
    return draw.sample(found, count)


def _paths() -> list[Path]:
    return [DATA / "paired" / name for name in FILES]


def _synthetic(draw: random.Random) -> Lengths:
    asked, answered = draw.random(), draw.random()
    return Lengths(
        _quantile("instruction", asked),
        _quantile("response", answered),
        _quantile("rewrite", answered),
    )


def _quantile(name: str, rank: float) -> int:
    """Between the quantiles that are known, linearly."""
    values = QUANTILES[name]
    above = next(i for i, each in enumerate(RANKS) if i and rank <= each)
    share = (rank - RANKS[above - 1]) / (RANKS[above] - RANKS[above - 1])
    return round(values[above - 1] + share * (values[above] - values[above - 1]))
