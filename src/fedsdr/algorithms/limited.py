"""A limit on what one client can send: updates beyond it are refused, not scaled."""

from typing import Any

from fedsdr.algorithms.contract import Algorithm, Update
from fedsdr.core.adapters import norm


def with_norm_limit(inner: Algorithm, most: float) -> Algorithm:
    """`inner`, whose server refuses updates of a larger Euclidean norm than `most`, by
    `ValueError`; as they are once decoded."""

    def collect(fold: Any, update: Update) -> Any:
        if norm(update.change) > most:  # its norm may be private, and the reason is written down
            raise ValueError(f"its update is longer than deployment.max_norm = {most:g}")
        return inner.add(fold, update)

    return inner._replace(add=collect)
