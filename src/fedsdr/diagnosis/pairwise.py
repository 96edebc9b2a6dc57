"""A measure of every two clients, as a matrix and as its mean."""

import math
from collections.abc import Callable, Mapping
from itertools import combinations, combinations_with_replacement
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsdr.core.errors import UserError

T = TypeVar("T")


class Pairwise(NamedTuple):
    """matrix: (K, K), symmetric, its rows and columns in the order of the K names."""

    names: tuple[str, ...]
    matrix: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Over pairs of different clients: the diagonal is left out."""
        pairs = list(combinations(range(len(self.names)), 2))
        return math.fsum(self.matrix[pair] for pair in pairs) / len(pairs)


def pairwise_matrix(clients: Mapping[str, T], measure: Callable[[T, T], float]) -> Pairwise:
    """A symmetric `measure` of every two clients, and of each with itself."""
    check_enough(clients)
    matrix = np.zeros((len(clients), len(clients)))
    for (i, a), (j, b) in combinations_with_replacement(enumerate(clients.values()), 2):
        matrix[i, j] = matrix[j, i] = measure(a, b)
    return Pairwise(tuple(clients), matrix)


def check_enough(clients: Mapping[str, object]) -> None:
    """Raise `UserError` for fewer than two clients."""
    if len(clients) < 2:
        raise UserError(f"clients = {list(clients)}: a comparison needs at least two of them")
