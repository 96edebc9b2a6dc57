"""FFA-LoRA: A stays as it was drawn, only B is trained and averaged.

Sun et al. 2024 (arXiv 2403.12313), Sec. 4: half the upload, and the mean is exact.
"""

from fedsdr.algorithms.aggregation.one_factor import one_factor
from fedsdr.algorithms.contract import Algorithm, NoOptions


def ffa_lora(inner: Algorithm, options: NoOptions) -> Algorithm:
    """`inner` on B alone."""
    return one_factor(inner, lambda round: "B")
