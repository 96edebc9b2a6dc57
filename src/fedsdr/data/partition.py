"""Partitioning: sources of named clients, splits of pooled records, and held-out records."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Final

import numpy as np
import torch

from fedsdr.core import seeds
from fedsdr.core.client_names import (
    LONGEST_NAME,
    check_client_name,
    check_distinct_clients,
    is_name_character,
)
from fedsdr.core.errors import UserError
from fedsdr.data.records import ClientData, Record
from fedsdr.data.sources import SourceRecords, read_source
from fedsdr.recipe.sections.data import Data, Split

Shares = dict[str, list[Record]]  # client name -> its records
Conversations = Sequence[Sequence[Record]]  # the records of each, which stay together

DRAWS: Final = 100  # of Dirichlet shares, until every client has enough
SMALLEST_CLIENT: Final = 2  # records of a client: one to learn from and one to judge by


def build_clients(data: Data, seed: int) -> list[ClientData]:
    """`read_clients`, without what became of the sources."""
    return read_clients(data, seed)[1]


def read_clients(data: Data, seed: int) -> tuple[list[SourceRecords], list[ClientData]]:
    """Read all sources and assign their records to clients; a function of `data` and `seed`.

    Clients named by sources come first, in the order of the sources, then those of `data.split`.
    Raises `UserError` for what cannot be read, unsafe or clashing names, and empty clients.
    """
    if not data.sources:
        raise UserError("no data: add [[data.sources]] with a path")
    for source in data.sources:
        if source.client is not None:
            check_client_name(source.client)
    named: Shares = {}
    pooled: list[Record] = []
    sources = [read_source(each, seed, data.learn, data.invalid) for each in data.sources]
    for source, found in zip(data.sources, sources, strict=True):
        holder = pooled if source.client is None else named.setdefault(source.client, [])
        holder += found.records
    split = split_records(pooled, data.split, seed) if pooled else {}
    check_distinct_clients([*named, *split])
    for name in split:
        check_client_name(name)
    shares = [*named.items(), *split.items()]
    return sources, [hold_out(name, records, data.held_out, seed) for name, records in shares]


def group_conversations(records: Sequence[Record]) -> list[list[Record]]:
    """Records that follow one another in one conversation, together."""
    groups: list[list[Record]] = []
    for record in records:
        if record.place == 0 or not groups:
            groups.append([])
        groups[-1].append(record)
    return groups


def hold_out(name: str, records: Sequence[Record], share: float, seed: int) -> ClientData:
    """A client with `share` of its conversations held out, drawn by `seed` and its name.

    At least one is held out where share > 0 and there are two, and at least one is left to learn
    from. Both parts keep the order of `records`.
    """
    if not records:
        raise UserError(
            f"client {name!r} has no training records: lower split.clients, or give it a source"
        )
    groups = group_conversations(records)
    count = min(max(round(len(groups) * share), 1), len(groups) - 1) if share > 0 else 0
    generator = seeds.seeded_generator(seed, "held out", name)
    drawn = set(torch.randperm(len(groups), generator=generator)[:count].tolist())
    return ClientData(
        name=name,
        train=tuple(r for i, group in enumerate(groups) if i not in drawn for r in group),
        held_out=tuple(r for i, group in enumerate(groups) if i in drawn for r in group),
    )


def split_records(records: Sequence[Record], split: Split, seed: int) -> Shares:
    """Split pooled records among clients as `split` says: each conversation goes to exactly one
    client, and clients keep the order of `records`."""
    return SPLITS[split.by](group_conversations(records), split, _random(seed, split.by))


def _random(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(seeds.derive_seed(seed, "split", purpose))


def _iid(groups: Conversations, split: Split, random: np.random.Generator) -> Shares:
    """Sizes that differ by at most one."""
    parts = np.array_split(random.permutation(len(groups)), split.clients)
    return _numbered(groups, [part.tolist() for part in parts])


def _numbered(groups: Conversations, parts: Sequence[Sequence[int]]) -> Shares:
    return {
        f"client-{k:02d}": [record for index in sorted(part) for record in groups[index]]
        for k, part in enumerate(parts)
    }


def _by_column(conversations: Conversations, split: Split, random: np.random.Generator) -> Shares:
    """A client for each category, in order of first appearance; deterministic."""
    del split, random
    groups: Shares = {}
    for record in (record for group in conversations for record in group):
        if not record.category:
            raise UserError(
                f'{record.origin} has no category, which split.by = "column" needs: set category '
                'or fields.category in its source, or split by "iid" or "dirichlet"'
            )
        groups.setdefault(record.category, []).append(record)
    names: dict[str, str] = {}
    for number, category in enumerate(groups):
        other = names.setdefault(_slug(category, number), category)
        if other != category:
            raise UserError(
                f"categories {other!r} and {category!r} give one client name, "
                f"{_slug(category, number)!r}: rename one of them"
            )
    return {name: groups[category] for name, category in names.items()}


def _slug(category: str, number: int) -> str:
    """The category as a client's name: in lower case where it is ASCII; as it is written where it
    is not, without signs that no name has; numbered where no letter or digit is left."""
    if category.isascii():
        plain = re.sub(r"[^a-z0-9._-]+", "-", category.lower()).strip("-.")
    else:
        plain = "".join(c if is_name_character(c) else "-" for c in category)[:LONGEST_NAME].strip()
    return plain if any(map(str.isalnum, plain)) else f"category-{number:02d}"


def _dirichlet(conversations: Conversations, split: Split, random: np.random.Generator) -> Shares:
    """For each group of conversations, shares of the clients drawn from Dirichlet(alpha).

    Yurochkin et al. 2019, section 4 ("heterogeneous partition"); alpha has the meaning of
    Hsu et al. 2019, who draw each client's shares of the groups instead. Drawn anew until every
    client has `SMALLEST_CLIENT` of them, to learn from and to be evaluated on.
    """
    groups = _groups([group[0] for group in conversations], split.clusters, random)
    for _ in range(DRAWS):
        parts = _deal(groups, split, random)
        if min(map(len, parts)) >= SMALLEST_CLIENT:
            return _numbered(conversations, parts)
    enough = len(conversations) >= SMALLEST_CLIENT * split.clients
    remedy = "raise split.alpha or lower split.clients" if enough else "lower split.clients"
    raise UserError(
        f"split.alpha = {split.alpha:g} left a client of {split.clients} with fewer than "
        f"{SMALLEST_CLIENT} of {len(conversations)} records in each of {DRAWS} draws: {remedy}"
    )


def _deal(
    groups: Sequence[Sequence[int]], split: Split, random: np.random.Generator
) -> list[list[int]]:
    """Indices for each client: every group shuffled and cut at drawn shares."""
    parts: list[list[int]] = [[] for _ in range(split.clients)]
    # Above 1e6 shares are equal to a thousandth, and from 1e308 on their sum would overflow.
    alphas = np.full(split.clients, min(split.alpha, 1e6))
    for group in groups:
        order = random.permutation(group)
        ends = np.cumsum(random.dirichlet(alphas)) * len(group)
        # One random offset: rounding to the nearest would assign every small group to one client.
        cuts = np.floor(ends[:-1] + random.random()).astype(int)
        for part, piece in zip(parts, np.split(order, cuts), strict=True):
            part += piece.tolist()
    return parts


def _groups(
    records: Sequence[Record], clusters: int, random: np.random.Generator
) -> list[list[int]]:
    """Indices of each category's records, then of clusters of those without a category."""
    filed: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        filed.setdefault(record.category, []).append(index)
    unfiled = filed.pop("", [])
    labels = cluster_texts([records[index].instruction for index in unfiled], clusters, random)
    found: dict[int, list[int]] = {}
    for index, label in zip(unfiled, labels, strict=True):
        found.setdefault(label, []).append(index)
    return [*filed.values(), *found.values()]


def cluster_texts(texts: Sequence[str], clusters: int, random: np.random.Generator) -> list[int]:
    """A label below `clusters` for each text: k-means of its TF-IDF words."""
    distinct = len({" ".join(text.split()) for text in texts})
    if clusters == 1 or distinct < 2:
        return [0] * len(texts)
    # Imported here, since few runs need them and scikit-learn takes a second.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # Any run of word characters is a word, so that texts of every language have some ...
    vectorizer = TfidfVectorizer(max_features=4096, sublinear_tf=True, token_pattern=r"\w+|\S")
    features = vectorizer.fit_transform(texts)
    means = KMeans(
        n_clusters=min(clusters, distinct),
        n_init=4,
        random_state=int(random.integers(2**32)),
    )
    # ... but texts may share all of them, and then k-means warns that it found fewer clusters.
    # One thread, since the order in which threads add up would change the last bits.
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return [int(label) for label in means.fit_predict(features)]


SPLITS: Final[Mapping[str, Callable[[Conversations, Split, np.random.Generator], Shares]]] = {
    "iid": _iid,
    "column": _by_column,
    "dirichlet": _dirichlet,
}


def pool_clients(clients: Sequence[ClientData]) -> ClientData:
    """One client "all" with the records of all clients, for centralised training."""
    return ClientData(
        name="all",
        train=tuple(record for client in clients for record in client.train),
        held_out=tuple(record for client in clients for record in client.held_out),
    )


def describe_clients(clients: Sequence[ClientData]) -> list[dict[str, Any]]:
    """A row for each client, ready for JSON.

    records, held_out: how many to learn from and to judge by. mean_prompt_words,
    mean_response_words: words between white space, all turns together, and categories: name ->
    records (those without one left out), all three of the records to learn from.
    """
    return [
        {
            "name": client.name,
            "records": len(client.train),
            "held_out": len(client.held_out),
            "mean_prompt_words": _mean(_prompt_words(record) for record in client.train),
            "mean_response_words": _mean(len(record.response.split()) for record in client.train),
            "categories": dict(
                Counter(record.category for record in client.train if record.category).most_common()
            ),
        }
        for client in clients
    ]


def _prompt_words(record: Record) -> int:
    return sum(len(turn.text.split()) for turn in record.prompt)


def _mean(values: Iterable[int]) -> float:
    return fmean([*values] or [0])


def data_fingerprint(clients: Sequence[ClientData]) -> str:
    """A digest of every record of every client, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for client in clients:
        for part in (client.train, client.held_out):
            digest.update(repr((client.name, part)).encode())
    return digest.hexdigest()
