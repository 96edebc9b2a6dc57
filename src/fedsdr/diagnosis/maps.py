"""Responses as points in the plane, near where their words are alike."""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.diagnosis.text import split_words

MAP_METHODS: Final = ("pca", "tsne")
COMPONENTS: Final = 50  # that t-SNE starts from (van der Maaten & Hinton 2008 take 30)
PERPLEXITY: Final = 30.0
FEWEST_POINTS: Final = 3  # texts with words of their own


def response_map(
    texts: Sequence[str], method: Literal["pca", "tsne"], seed: int
) -> NDArray[np.float64]:
    """(n, 2): TF-IDF of words, reduced by truncated SVD, then by PCA or t-SNE.

    A function of its arguments. PCA keeps distances as well as two axes can; t-SNE keeps
    neighbours, and its distances between groups mean nothing.
    """
    if method not in MAP_METHODS:
        raise UserError(f"method = {method!r}: choose from {', '.join(MAP_METHODS)}")
    distinct = len({tuple(sorted(split_words(text))) for text in texts})
    if distinct < FEWEST_POINTS:
        raise UserError(
            f"texts hold {distinct} different sets of words: a map needs {FEWEST_POINTS}"
        )
    state = seeds.derive_seed(seed, "map") % 2**32
    # One thread, since the order in which threads add up would change the last bits.
    with threadpool_limits(limits=1):
        features = TfidfVectorizer(analyzer=split_words, sublinear_tf=True).fit_transform(texts)
        size = min(COMPONENTS, *features.shape)
        reduced = TruncatedSVD(size, random_state=state).fit_transform(features)
        if method == "pca":
            return np.asarray(PCA(2).fit_transform(reduced), dtype=np.float64)
        perplexity = min(PERPLEXITY, (len(texts) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=state)
        return np.asarray(tsne.fit_transform(reduced), dtype=np.float64)
