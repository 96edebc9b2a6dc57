"""Heterogeneity of clients' texts and gradients, with intervals over records and a chance level.

An interval is the estimate plus and minus 1.96 standard deviations over resamples of each
client's records. The quantiles of the resamples themselves would be biased: a resample has fewer
distinct words, so its clients differ more than those of the records.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import xlogy

from fedsdr.core import seeds
from fedsdr.core.adapters import Adapter
from fedsdr.core.statistics import Interval, normal_interval
from fedsdr.data.example import Example
from fedsdr.diagnosis.divergence import (
    fewest_words,
    js_matrix,
    mean_js,
    sample_words,
    tfidf_cosine,
    tfidf_matrix,
)
from fedsdr.diagnosis.gradients import client_gradients
from fedsdr.diagnosis.pairwise import Pairwise
from fedsdr.diagnosis.text import split_words
from fedsdr.model.lora import TwoStreamModel

RESAMPLES: Final = 100
MOST_CLIENTS: Final = 20  # with intervals: their cost grows with the pairs of clients
GROUPS: Final = 16  # of a client's records, for the interval of gradients
MEMORY: Final = 2**31  # bytes that the groups' gradients may take
Floats = NDArray[np.float64]
RoundTexts = Mapping[str, Sequence[str]]


class ClientDivergence(NamedTuple):
    """js: bits, 0 to 1. even: at `words` words of each client, since longer texts alone come
    closer; chance: the same for records assigned at random to clients of the same sizes."""

    js: Pairwise
    tfidf: Pairwise
    mean_js: Interval
    mean_tfidf: Interval
    even_js: float
    even_tfidf: float
    chance_js: float
    chance_tfidf: float
    words: int


class Change(NamedTuple):
    """Rewritten minus raw, of the same records."""

    js: Interval
    tfidf: Interval


def measure_divergence(clients: RoundTexts, seed: int, size: int | None = None) -> ClientDivergence:
    """`size`: words of each client in the even comparison; by default the fewest there are."""
    shuffled = _shuffled(clients, seed)
    size = size or min(fewest_words(clients), fewest_words(shuffled))
    even, chance = sample_words(clients, size, seed), sample_words(shuffled, size, seed)
    counts = WordCounts([clients], seed)
    js, tfidf = js_matrix(clients), tfidf_matrix(clients)
    return ClientDivergence(
        js,
        tfidf,
        counts.interval(lambda each: js_of(each[0])),
        counts.interval(lambda each: tfidf_of(each[0])),
        mean_js(even),
        tfidf_cosine(even),
        mean_js(chance),
        tfidf_cosine(chance),
        size,
    )


def divergence_change(raw: RoundTexts, rewritten: RoundTexts, seed: int) -> Change:
    """How rewriting moves the clients' texts; both sides are resampled together."""
    counts = WordCounts([raw, rewritten], seed)
    return Change(
        counts.interval(lambda each: js_of(each[1]) - js_of(each[0])),
        counts.interval(lambda each: tfidf_of(each[1]) - tfidf_of(each[0])),
    )


def _shuffled(clients: RoundTexts, seed: int) -> dict[str, list[str]]:
    texts = [text for each in clients.values() for text in each]
    order = iter(np.random.default_rng(seeds.derive_seed(seed, "chance")).permutation(len(texts)))
    return {name: [texts[next(order)] for _ in each] for name, each in clients.items()}


class WordCounts:
    """Word counts of records, resampled jointly: the same records on every side."""

    def __init__(self, sides: Sequence[RoundTexts], seed: int) -> None:
        self.random = np.random.default_rng(seeds.derive_seed(seed, "resamples"))
        known: dict[str, int] = {}
        found = [
            [[[known.setdefault(w, len(known)) for w in split_words(t)] for t in texts]
             for texts in side.values()]
            for side in sides
        ]  # fmt: skip
        self.sides = [[[np.array(ids, dtype=int) for ids in c] for c in side] for side in found]
        self.size = len(known)

    def interval(self, measure: Callable[[list[Floats]], float]) -> Interval:
        """`measure` of the sides' (K, words) counts, and its spread over resamples."""
        records = [len(client) for client in self.sides[0]]
        whole = measure(self._counts([np.ones(n) for n in records]))
        if len(records) > MOST_CLIENTS or min(records) < 2:
            return Interval(whole)
        draws = [
            measure(self._counts([self.random.multinomial(n, np.full(n, 1 / n)) for n in records]))
            for _ in range(RESAMPLES)
        ]
        return normal_interval(whole, draws)

    def _counts(self, weights: Sequence[NDArray[np.generic]]) -> list[Floats]:
        return [
            np.stack(
                [
                    np.bincount(
                        np.concatenate(client),
                        np.repeat(weight, [len(ids) for ids in client]),
                        self.size,
                    )
                    for client, weight in zip(side, weights, strict=True)
                ]
            )
            for side in self.sides
        ]


def js_of(counts: Floats) -> float:
    """Mean over pairs of rows of the Jensen-Shannon divergence, in bits; (K, words)."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    own = _entropy(shares)
    first, second = np.triu_indices(len(shares), 1)
    middle = [_entropy((shares[i] + shares[j]) / 2) for i, j in zip(first, second, strict=True)]
    return float(np.mean(np.array(middle) - (own[first] + own[second]) / 2))


def _entropy(shares: Floats) -> Floats:
    entropies: Floats = -xlogy(shares, shares).sum(axis=-1) / np.log(2)
    return entropies


def tfidf_of(counts: Floats) -> float:
    """Mean over pairs of rows of the cosine that `tfidf_matrix` has; (K, words)."""
    held = (counts > 0).sum(axis=0)
    rarity = np.log((1 + len(counts)) / (1 + held)) + 1
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * rarity
    return float(np.mean(gram_cosines(weights @ weights.T)[np.triu_indices(len(counts), 1)]))


def gram_cosines(gram: Floats) -> Floats:
    """(K, K) inner products as cosines; 0 where a vector is zero."""
    norms = np.sqrt(np.diag(gram))
    scale = np.outer(norms, norms)
    found: Floats = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    return found


class Gradients(NamedTuple):
    """cosine: of every two clients' gradients of R at R^0. own: mean cosine between two halves of
    one client's records; others: between halves of different clients. Where `own` is small too,
    it is noise that keeps `cosine` small."""

    cosine: Pairwise
    mean: Interval
    own: float | None
    others: float | None
    records: int


class GroupedGradients:
    """Clients' gradients as sums over groups of their records, reduced to inner products."""

    def __init__(
        self,
        model: TwoStreamModel,
        examples: Mapping[str, Sequence[Example]],
        shared: Adapter,
        pad: int,
        batch_size: int,
    ) -> None:
        self.names = tuple(examples)
        self.records = min(map(len, examples.values()))
        bytes_each = 4 * sum(tensor.numel() for tensor in shared.values())
        fits = MEMORY // (bytes_each * len(examples))
        self.groups = min(GROUPS, self.records, fits) if fits >= 4 else 1
        vectors = []
        for name, given in examples.items():
            for group in range(self.groups):
                part = {name: given[group :: self.groups]}
                gradient = client_gradients(model, part, shared, pad, batch_size, limit=len(given))[
                    name
                ]
                tokens = sum(len(example.response) for example in part[name])
                vectors.append(torch.cat([t.flatten() for t in gradient.values()]) * tokens)
        stacked = torch.stack(vectors)
        self.gram: Floats = (stacked @ stacked.T).double().numpy()

    def measured(self) -> Gradients:
        matrix = self.cosines(self._all())
        own = others = None
        if self.groups >= 2:
            even, odd = self._all(), self._all()
            even[:, 1::2], odd[:, ::2] = 0, 0
            halves = self.cosines(np.concatenate([even, odd]))
            count = len(self.names)
            across = halves[:count, count:]  # (K, K)
            own = float(np.mean(np.diag(across)))
            others = float(np.mean(across[~np.eye(count, dtype=bool)]))
        draws = [self.mean(weights) for weights in self.resamples(0)]
        whole = self.mean(self._all())
        interval = normal_interval(whole, draws) if draws else Interval(whole)
        return Gradients(Pairwise(self.names, matrix), interval, own, others, self.records)

    def resamples(self, seed: int) -> list[Floats]:
        """(K, groups) weights of resampled groups; none where there are fewer than four."""
        if self.groups < 4:
            return []
        random = np.random.default_rng(seeds.derive_seed(seed, "groups"))
        chances, shape = np.full(self.groups, 1 / self.groups), len(self.names)
        return [
            random.multinomial(self.groups, chances, shape).astype(float) for _ in range(RESAMPLES)
        ]

    def mean(self, weights: Floats) -> float:
        return float(np.mean(self.cosines(weights)[np.triu_indices(len(self.names), 1)]))

    def cosines(self, weights: Floats) -> Floats:
        """Of weighted sums of groups; row i of `weights` is of client i modulo K."""
        count = len(self.names)
        spread = np.zeros((len(weights), count * self.groups))
        for row, weight in enumerate(weights):
            start = (row % count) * self.groups
            spread[row, start : start + self.groups] = weight
        return gram_cosines(spread @ self.gram @ spread.T)

    def _all(self) -> Floats:
        return np.ones((len(self.names), self.groups))


def gradient_change(raw: GroupedGradients, rewritten: GroupedGradients, seed: int) -> Interval:
    """Mean cosine on rewrites minus that on raw responses, the same groups resampled in both."""
    whole = np.ones((len(raw.names), raw.groups))
    difference = rewritten.mean(whole) - raw.mean(whole)
    draws = [rewritten.mean(w) - raw.mean(w) for w in raw.resamples(seed)]
    return normal_interval(difference, draws) if draws else Interval(difference)
