"""Responses before and after rewriting: what it does to each, and to how far groups lie apart."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.diagnosis.divergence import (
    ClientWords,
    fewest_words,
    mean_js,
    sample_words,
    tfidf_cosine,
)
from fedsdr.diagnosis.text import TextStats, text_stats

Groups = dict[str, list[str]]  # group -> its responses


class PairedDivergence(NamedTuple):
    """Means over pairs of groups. js: in bits, 0 to 1. tfidf_cosine: 0 to 1."""

    js: float
    tfidf_cosine: float


class Side(NamedTuple):
    """One half of the pairs.

    full: of all words. thinned: of equally many words in every group and on both sides, since
    longer responses alone bring groups together. chance: as thinned, with responses assigned at
    random to groups of the same sizes. The distance of the groups is what thinned has beyond
    chance.
    """

    stats: TextStats
    full: PairedDivergence
    thinned: PairedDivergence
    chance: PairedDivergence


class PairedComparison(NamedTuple):
    """fallbacks: pairs whose rewrite is the raw response. thinned_to: words a group."""

    pairs: int
    fallbacks: int
    thinned_to: int
    raw: Side
    rewritten: Side

    def rows(self) -> list[tuple[str, float, float]]:
        """(measure, before, after), e.g. ("filler", 0.1, 0.2) and ("thinned js", 0.4, 0.3)."""
        before, after = _flat(self.raw), _flat(self.rewritten)
        return [(name, before[name], after[name]) for name in before]


def _flat(side: Side) -> dict[str, float]:
    apart = {"": side.full, "thinned ": side.thinned, "chance ": side.chance}
    means = {view + name: x for view, each in apart.items() for name, x in each._asdict().items()}
    return {**side.stats._asdict(), **means}


def compare_pairs(
    raw: Sequence[str], rewritten: Sequence[str], groups: Sequence[str | int], seed: int = 0
) -> PairedComparison:
    """The table before and after; `groups` says which (pseudo-)client each pair belongs to.

    seed: of the words drawn for `thinned`, and of the random groups of `chance`.
    """
    if not raw or not len(raw) == len(rewritten) == len(groups):
        raise UserError(
            f"{len(raw)} raw and {len(rewritten)} rewritten responses with {len(groups)} groups' "
            "labels: they must be equally many, and not 0"
        )
    order = np.random.default_rng(seeds.derive_seed(seed, "chance")).permutation(len(groups))
    shuffled = [groups[index] for index in order]
    grouped = [(_group(texts, groups), _group(texts, shuffled)) for texts in (raw, rewritten)]
    size = min(fewest_words(each) for pair in grouped for each in pair)
    sides = [
        _side(texts, own, chance, size, seed)
        for texts, (own, chance) in zip((raw, rewritten), grouped, strict=True)
    ]
    fallbacks = sum(a.strip() == b.strip() for a, b in zip(raw, rewritten, strict=True))
    return PairedComparison(len(raw), fallbacks, size, *sides)


def _side(texts: Sequence[str], own: Groups, chance: Groups, size: int, seed: int) -> Side:
    thinned, by_chance = sample_words(own, size, seed), sample_words(chance, size, seed)
    return Side(text_stats(texts), _apart(own), _apart(thinned), _apart(by_chance))


def _group(texts: Sequence[str], groups: Sequence[str | int]) -> Groups:
    found: Groups = {}
    for text, group in zip(texts, groups, strict=True):
        found.setdefault(str(group), []).append(text)
    return found


def _apart(groups: ClientWords) -> PairedDivergence:
    return PairedDivergence(mean_js(groups), tfidf_cosine(groups))
