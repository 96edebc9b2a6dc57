"""FedSD: any algorithm, with D_dist in place of D_raw as the supervised target.

arXiv 2605.18028, Sec. method, FedSD step 2. The rewriting itself is `fedsdr.distillation`.
"""

from dataclasses import replace

from fedsdr.algorithms.contract import Algorithm, Targets
from fedsdr.algorithms.stages import with_stages


def distilled_targets(inner: Algorithm) -> Algorithm:
    """`inner`, learning from its clients' rewritten responses."""
    return _learning(inner, "distilled")


def mixed_targets(inner: Algorithm) -> Algorithm:
    """`inner`, learning from the raw responses and the rewritten ones as one set of records.

    FedSDR's data without its two streams: the baseline for them.
    """
    return _learning(inner, "mixed")


def _learning(inner: Algorithm, targets: Targets) -> Algorithm:
    return with_stages(inner, lambda stage: replace(stage, targets=targets))
