"""FedSA-LoRA: A learns what is common and is averaged, B what is a client's own and stays.

Guo et al. 2025 (arXiv 2410.01463), Algorithm 1. Both factors are trained in every step.
"""

from fedsdr.algorithms.aggregation.partly_shared import partly_shared
from fedsdr.algorithms.contract import Algorithm, NoOptions
from fedsdr.core.adapters import factor_of, select_tensors


def fedsa_lora(inner: Algorithm, options: NoOptions) -> Algorithm:
    """`inner` on A; each client keeps its B."""
    return partly_shared(
        inner, lambda first: select_tensors(first, lambda key: factor_of(key) == "A")
    )
