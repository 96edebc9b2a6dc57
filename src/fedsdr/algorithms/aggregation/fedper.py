"""FedPer: the lower layers are shared, the upper ones stay with their client.

Arivazhagan et al. 2019 (arXiv 1912.00818), here on the adapters of a transformer's blocks: those
of the topmost blocks are never sent.
"""

import math
import re
from typing import Annotated

from pydantic import Field

from fedsdr.algorithms.aggregation.partly_shared import partly_shared
from fedsdr.algorithms.contract import Algorithm, Options
from fedsdr.core.adapters import Adapter, layer_paths, select_tensors
from fedsdr.core.errors import UserError


class FedPer(Options):
    """Which blocks are personal."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The share of the blocks, counted from the top, whose adapters stay with the client."""


def fedper(inner: Algorithm, options: FedPer) -> Algorithm:
    """`inner` on the lower blocks; each client keeps its upper ones."""

    def lower(first: Adapter) -> Adapter:
        blocks = sorted({block_of(path) for path in layer_paths(first)})
        kept = math.ceil(len(blocks) * options.share - 1e-9)  # 0.14 x 50 is a little over 7
        if kept == len(blocks):
            raise UserError(
                f"fedper: all {kept} adapted blocks would stay with the clients and nothing be "
                "shared: lower options.fedper.share or adapt more blocks"
            )
        shared = set(blocks[: len(blocks) - kept])
        return select_tensors(first, lambda key: block_of(key) in shared)

    return partly_shared(inner, lower)


def block_of(path: str) -> int:
    """The number of the transformer block that a layer belongs to: the first one in its path."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    if number is None:
        raise UserError(
            f"fedper counts transformer blocks, but {path!r} has no number: choose another "
            "federation.lora_aggregation"
        )
    return int(number[1])
