"""Pseudo-clients: groups of unlabelled instructions that are about like things."""

from collections.abc import Sequence

import numpy as np

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.data.partition import cluster_texts


def pseudo_clients(instructions: Sequence[str], clusters: int, seed: int) -> list[int]:
    """A label below `clusters` for each instruction, as split.by = "dirichlet" groups records."""
    if not instructions or clusters < 1:
        raise UserError(
            f"clusters = {clusters} of {len(instructions)} instructions: at least 1 of each"
        )
    return cluster_texts(
        instructions, clusters, np.random.default_rng(seeds.derive_seed(seed, "clusters"))
    )
