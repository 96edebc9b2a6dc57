"""Coordinate-wise median of a round's updates.

Yin et al. 2018 (arXiv 1803.01498), Definition 1; of an even number, the mean of the middle two.
Records do not weigh: a hostile client would claim many.

The updates of a round are kept until all are there: memory grows with the number of clients.
"""

from fedsdr.algorithms.contract import Algorithm, NoOptions
from fedsdr.algorithms.robust.trimmed_mean import of_sorted


def median(inner: Algorithm, options: NoOptions) -> Algorithm:
    """`inner` on the median of each coordinate: all is trimmed but the middle one or two."""
    return of_sorted(inner, cut=lambda count: (count - 1) // 2)
