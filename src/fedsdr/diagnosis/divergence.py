"""Distance of clients' texts: divergence of their word distributions, and TF-IDF cosine.

Both are among the paper's diagnostics (arXiv 2605.18028: from 0.4074 to 0.3611, and from 0.6362
to 0.7064). It specifies neither units, nor tokens, nor weights; our choices are stated below.

Both depend on the amount of text too. The fewer words
clients have, the more they seem to differ, so that longer responses alone reduce the distance:
compare equal amounts (`sample_words`), and with clients whose records are shuffled.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr
from sklearn.feature_extraction.text import TfidfVectorizer

from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.diagnosis.pairwise import Pairwise, check_enough, pairwise_matrix
from fedsdr.diagnosis.text import split_words

Token = str | int
Text = Sequence[Token]  # a string, which `split_words` splits, or tokens: words or ids
ClientWords = Mapping[str, Sequence[Text]]  # name -> its texts
K = TypeVar("K", bound=Hashable)


def js_divergence(
    p_counts: Mapping[K, float], q_counts: Mapping[K, float], base: float = 2.0
) -> float:
    """(KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2, of two counts made to add up to 1.

    Lin 1991. In bits, 0 to 1, with base 2; in nats, 0 to ln 2, with base e. The divergence, not
    its root, which is the distance.
    """
    tokens = list(dict.fromkeys([*p_counts, *q_counts]))
    p, q = _shares(p_counts, tokens), _shares(q_counts, tokens)
    middle = (p + q) / 2
    # fsum rounds once, so that the order of tokens, which is that of the arguments, is no matter.
    return math.fsum([*rel_entr(p, middle), *rel_entr(q, middle)]) / 2 / math.log(base)


def _shares(counts: Mapping[K, float], tokens: Sequence[K]) -> NDArray[np.float64]:
    """(tokens,), adding up to 1."""
    values = np.array([counts.get(token, 0) for token in tokens], dtype=np.float64)
    total, least = math.fsum(values), min(values, default=0)
    if not (total > 0 and least >= 0):
        raise UserError(
            f"counts from {least} on that add up to {total}: none may be below 0, nor all be 0"
        )
    return np.divide(values, total)


def js_matrix(clients: ClientWords) -> Pairwise:
    """Jensen-Shannon divergence, in bits, of the words of every two clients."""
    return pairwise_matrix(_counts(clients), js_divergence)


def mean_js(clients: ClientWords) -> float:
    """Mean of `js_matrix` over pairs of clients."""
    return js_matrix(clients).mean


def tfidf_matrix(clients: ClientWords) -> Pairwise:
    """Cosine, 0 to 1, of the TF-IDF vectors of every two clients: one document a client.

    A word found n times has the weight (1 + ln n) (ln((1 + K) / (1 + clients with it)) + 1). With
    n in the place of 1 + ln n, as scikit-learn has it by default, a few function words would be
    most of each vector, and all cosines close to 1.
    """
    check_enough(clients)
    documents = [_tokens(name, texts) for name, texts in clients.items()]
    vectorizer = TfidfVectorizer(analyzer=list, sublinear_tf=True)
    vectors = vectorizer.fit_transform(documents)  # (K, words), each of length 1
    return Pairwise(tuple(clients), (vectors @ vectors.T).toarray())


def tfidf_cosine(clients: ClientWords) -> float:
    """Mean of `tfidf_matrix` over pairs of clients."""
    return tfidf_matrix(clients).mean


def fewest_words(clients: ClientWords) -> int:
    """The word count of the client with fewest words: as many can be drawn of each."""
    return min(counts.total() for counts in _counts(clients).values())


def sample_words(clients: ClientWords, size: int, seed: int = 0) -> dict[str, list[list[Token]]]:
    """`size` words of each client, drawn without replacement from all it has, as one text."""
    thinned = {}
    for name, counts in _counts(clients).items():
        if not 0 < size <= counts.total():
            raise UserError(
                f"size = {size}: client {name!r} has {counts.total()} words, of which 1 to all "
                "can be drawn"
            )
        random = np.random.default_rng(seeds.derive_seed(seed, "thin", name))
        amounts = list(counts.values())
        drawn = random.multivariate_hypergeometric(amounts, size, method="marginals")
        thinned[name] = [list(Counter(dict(zip(counts, drawn.tolist(), strict=True))).elements())]
    return thinned


def _counts(clients: ClientWords) -> dict[str, Counter[Token]]:
    return {name: Counter(_tokens(name, texts)) for name, texts in clients.items()}


def _tokens(name: str, texts: Sequence[Text]) -> list[Token]:
    if isinstance(texts, str):
        raise UserError(f"client {name!r} has one string: give a sequence of texts")
    found = list(chain.from_iterable(split_words(t) if isinstance(t, str) else t for t in texts))
    if not found:
        raise UserError(f"client {name!r} has no words: leave it out, or give it texts")
    return found
