"""Combinations of algorithms, targets and transforms, by name: `CASES` cover every pair."""

from itertools import cycle
from typing import Any

from fedsdr.algorithms.contract import (
    Algorithm,
)
from fedsdr.algorithms.table import (
    ALGORITHMS,
    COMPRESSION,
    LORA_AGGREGATION,
    PERSONALISATION,
    PRIVACY,
    ROBUST,
    STAGE_LOSSES,
)
from fedsdr.core.errors import UserError
from fedsdr.recipe.sections.federation import Privacy
from support.covering_arrays import Row, allowed_pairs, covering
from support.toy_rounds import build

PREFIX = {"raw": "", "distilled": "fedsd+", "mixed": "mixed+", "two_stream": "fedsdr+"}
PLAIN = ("fedavg", "factors", "cross_entropy", "none")
CHOICES = {
    "algorithm": [*ALGORITHMS],
    "lora_aggregation": [*LORA_AGGREGATION],
    "targets": [*PREFIX],
    "loss": [*STAGE_LOSSES],
    "personalisation": [*PERSONALISATION],
    "robust": [*ROBUST],
    "compression": [*COMPRESSION],
    "mode": [*PRIVACY],
}


def name_of(row: Row) -> str:
    """ "local privacy fedsd+fedadam+median", of a choice from each table."""
    names = [name for key, name in row.items() if key not in ("targets", "mode")]
    parts = [name for name in names if name not in PLAIN] or ["fedavg"]
    privacy = "" if row["mode"] == "none" else f"{row['mode']} privacy "
    return privacy + PREFIX[row["targets"]] + "+".join(parts)


def goes_together(row: Row) -> bool:
    """Whether its choices do not exclude each other; anything else wrong is an error."""
    try:
        make(name_of(row))
    except UserError as error:
        if "exclude each other" not in str(error):
            raise
        return False
    return True


def make(name: str, **sections: Any) -> Algorithm:
    """The algorithm of a case."""
    if " privacy " in name:
        mode, _, name = name.partition(" privacy ")
        sections["privacy"] = Privacy(mode=mode, clip=3.0, noise_multiplier=0.5)
    return build(name, **sections)


PAIRS = allowed_pairs(CHOICES, lambda row: goes_together(row))
ALONE = [
    {**{key: names[0] for key, names in CHOICES.items()}, key: name}
    for key, names in CHOICES.items()
    for name in names
]
ROWS = [*ALONE, *covering(CHOICES, PAIRS)]
CASES = list(dict.fromkeys(name_of(row) for row in ROWS))
# For tests that train models: each choice once, in targets that take turns, and some together.
ONCE = [row for row in ALONE if (row["targets"], row["mode"]) == ("raw", "none")]
TURNS = zip(ONCE, cycle(PREFIX.values()), strict=False)
SOME = [
    *dict.fromkeys(prefix + name_of(row) for row, prefix in TURNS),
    "fedsdr+fedyogi+flexlora+ditto+int8",
    "fedsdr+soft+scaffold+rolora+topk",
    "fedsd+on_policy+fedprox+flora+feddpa+fp16",
    "fedsdr+feddyn+fedsa+ditto+int8",
    "fedsdr+fedavgm+fedper+feddpa+clipping",
    "mixed+fedadam+fedex+trimmed_mean",
]


def targets_of(name: str) -> str:
    method = name.rpartition(" ")[2]
    named = {prefix.rstrip("+"): targets for targets, prefix in PREFIX.items()}
    return named.get(method.split("+")[0], "raw")


def learnt(name: str) -> str:
    """What R learns from."""
    targets = targets_of(name)
    return "raw" if targets == "two_stream" else targets


def parts(name: str) -> set[str]:
    return set(name.rpartition(" ")[2].split("+"))
