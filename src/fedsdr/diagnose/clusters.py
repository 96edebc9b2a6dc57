"""Pseudo-clients: groups of unlabelled instructions that are about like things."""

from collections.abc import Sequence

import numpy as np

from fedsdr import seeds
from fedsdr.data.partition import cluster
from fedsdr.errors import UserError


def pseudo_clients(instructions: Sequence[str], clusters: int, seed: int) -> list[int]:
    """A label below `clusters` for each instruction, as split.by = "dirichlet" groups records."""
    if not instructions or clusters < 1:
        raise UserError(
            f"clusters = {clusters} of {len(instructions)} instructions: at least 1 of each"
        )
    return cluster(instructions, clusters, np.random.default_rng(seeds.derive(seed, "clusters")))
