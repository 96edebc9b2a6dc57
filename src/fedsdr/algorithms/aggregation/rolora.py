"""RoLoRA: B and A take turns, a round each.

Chen et al. 2024 (arXiv 2409.02346), Algorithm 1. B goes first: while it is zero, A has no
gradient. Each round sends one factor and its mean is exact.
"""

from fedsdr.algorithms.aggregation.one_factor import one_factor
from fedsdr.algorithms.contract import Algorithm, NoOptions


def rolora(inner: Algorithm, options: NoOptions) -> Algorithm:
    """`inner` on B in odd rounds and on A in even ones."""
    return one_factor(inner, lambda round: "B" if round % 2 else "A")
