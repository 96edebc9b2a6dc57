"""Who holds what: every record exactly once, the same for the same seed, fair names."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.core.errors import UserError
from fedsdr.data.partition import (
    build_clients,
    cluster_texts,
    describe_clients,
    hold_out,
    pool_clients,
    split_records,
)
from fedsdr.data.records import ClientData, Record, Turn
from fedsdr.recipe.sections.data import Data, Source, Split


def record(number: int, category: str = "") -> Record:
    return Record(
        (Turn("user", f"question {number}"),), f"r{number}", category, origin=f"a:{number}"
    )


def made(count: int, *categories: str) -> list[Record]:
    return [record(i, categories[i % len(categories)] if categories else "") for i in range(count)]


def is_in_order(records: Sequence[Record]) -> bool:
    numbers = [int(record.response[1:]) for record in records]
    return numbers == sorted(numbers)


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Source]:
    """Writes `count` records and gives their source."""

    def write_source(name: str, count: int, category: str = "", **options: Any) -> Source:
        path = tmp_path / f"{name}.json"
        rows = [
            {"prompt": f"{name} {i}", "response": f"r{i}", "category": category}
            for i in range(count)
        ]
        path.write_text(json.dumps(rows), encoding="utf-8")
        return Source(path=str(path), **options)

    return write_source


# Splits

SPLITS = st.builds(
    Split,
    by=st.sampled_from(["iid", "dirichlet"]),
    clients=st.integers(1, 6),
    alpha=st.floats(0.5, 1e308) | st.sampled_from([1.0, 100.0]),
    clusters=st.integers(1, 4),
)
CATEGORIES = st.sampled_from([(), ("a",), ("a", "b", "c"), ("a", "")])


@settings(max_examples=60, deadline=None)
@given(st.integers(12, 60), CATEGORIES, SPLITS, st.integers(-5, 2**70))
def test_every_record_goes_to_one_client(count, categories, split, seed):
    records = made(count, *categories)
    try:
        shares = split_records(records, split, seed)
    except UserError as error:
        assert split.by == "dirichlet"  # too few for so many clients, or too small an alpha
        assert "split.alpha" in str(error)  # noqa: PT017
        return
    assert list(shares) == [f"client-{k:02d}" for k in range(split.clients)]
    dealt = [record.response for share in shares.values() for record in share]
    assert sorted(dealt) == sorted(record.response for record in records)
    assert all(map(is_in_order, shares.values()))
    sizes = list(map(len, shares.values()))
    assert max(sizes) - min(sizes) <= 1 if split.by == "iid" else min(sizes) >= 2


@settings(max_examples=30, deadline=None)
@given(CATEGORIES, SPLITS, st.integers(0, 2**32))
def test_splits_depend_on_the_seed_alone(categories, split, seed):
    records = made(40, *categories)
    split = split.model_copy(update={"alpha": 5.0})
    first = split_records(records, split, seed)
    np.random.seed(seed % 7)
    torch.manual_seed(seed % 7)
    assert split_records(records, split, seed) == first


@pytest.mark.parametrize("by", ["iid", "dirichlet"])
@pytest.mark.parametrize("categories", [(), ("a", "b")])
def test_another_seed_is_another_split(by, categories):
    records = made(60, *categories)
    split = Split(by=by, clients=3, alpha=5)
    assert split_records(records, split, 0) != split_records(records, split, 1)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 10.0, 1e300, 1.7e308])
def test_dirichlet_shares_have_their_second_moment(alpha):
    """The squares of k shares from Dirichlet(alpha) add up to (alpha + 1) / (k alpha + 1)."""
    groups, size, k = 400, 30, 4
    records = [record(i, f"category {i % groups}") for i in range(groups * size)]
    shares = split_records(records, Split(by="dirichlet", clients=k, alpha=alpha), 1)
    counts = [Counter(record.category for record in share) for share in shares.values()]
    squares = sum((n / size) ** 2 for count in counts for n in count.values()) / groups
    assert squares == pytest.approx((1 + 1 / alpha) / (k + 1 / alpha), abs=0.04)


def test_dirichlet_rounding_favours_no_client():
    """A hundred categories of one record each, and nearly equal shares."""
    records = [record(i, f"category {i}") for i in range(100)]
    shares = split_records(records, Split(by="dirichlet", clients=5, alpha=1e4), 0)
    assert all(8 <= len(share) <= 32 for share in shares.values())


@pytest.mark.parametrize(
    ("count", "split", "parts"),
    [
        (30, Split(by="dirichlet", clients=5, alpha=1e-9), ["split.alpha = 1e-09", "raise"]),
        (9, Split(by="dirichlet", clients=5, alpha=9), ["fewer than 2 of 9", ": lower split.clie"]),
    ],
)
def test_dirichlet_gives_up_with_a_remedy(count, split, parts):
    with pytest.raises(UserError) as caught:
        split_records(made(count, "a"), split, 0)
    assert all(part in str(caught.value) for part in parts)


def test_clusters_find_topics():
    topics = ["sum numbers add total", "doctor fever pain illness", "stock market price profit"]
    texts = [f"{topics[i % 3]} {i}" for i in range(30)]
    labels = cluster_texts(texts, 3, np.random.default_rng(0))
    assert [labels[i] == labels[i % 3] for i in range(30)] == [True] * 30
    assert len(set(labels)) == 3


@pytest.mark.parametrize(
    "texts", [[], ["a"], ["a", "a"], ["", " "], ["?!", "..."], ["a", "A"], ["医学", "数学", "a b"]]
)
def test_clusters_of_texts_without_topics(texts):
    assert len(cluster_texts(texts, 8, np.random.default_rng(0))) == len(texts)


def test_column_gives_each_category_a_client():
    records = made(30, "Open QA", "closed_qa", "Éthique/Santé", "医学")
    shares = split_records(records, Split(by="column"), 0)
    assert list(shares) == ["open-qa", "closed_qa", "Éthique-Santé", "医学"]
    assert all(len({record.category for record in share}) == 1 for share in shares.values())
    assert sum(map(len, shares.values())) == 30


def test_column_needs_categories():
    with pytest.raises(UserError, match=r"a:1 has no category.*fields\.category"):
        split_records(made(4, "a", ""), Split(by="column"), 0)


def test_column_refuses_two_categories_of_one_name():
    with pytest.raises(UserError, match="'Open QA' and 'open-qa' give one client name, 'open-qa'"):
        split_records(made(4, "Open QA", "open-qa"), Split(by="column"), 0)


# Held-out records


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(10, 0.0, 0), (10, 0.1, 1), (10, 0.25, 2), (3, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0)],
)  # fmt: skip
def test_held_out_counts(count, share, expected):
    client = hold_out("a", made(count), share, 0)
    assert (len(client.train), len(client.held_out)) == (count - expected, expected)


@settings(deadline=None)
@given(st.integers(1, 50), st.floats(0, 0.99), st.integers(0, 2**64))
def test_held_out_records_are_not_learnt_from(count, share, seed):
    records = made(count)
    client = hold_out("a", records, share, seed)
    assert client == hold_out("a", records, share, seed)
    parts = [*client.train, *client.held_out]
    assert sorted(parts, key=lambda record: int(record.response[1:])) == records
    assert is_in_order(client.train)
    assert is_in_order(client.held_out)
    assert client.train


def test_held_out_records_depend_on_seed_and_client():
    drawn = {hold_out(name, made(99), 0.3, seed).held_out for name in "ab" for seed in (0, 1)}
    assert len(drawn) == 4


# Clients


def test_clients_of_sources_and_of_the_pool(source):
    data = Data(
        sources=(
            source("one", 10, client="Ann-1"),
            source("two", 7),
            source("three", 5, client="Ann-1"),
            source("four", 4),
        ),
        split=Split(clients=2),
        held_out=0,
    )
    clients = build_clients(data, 0)
    assert [client.name for client in clients] == ["Ann-1", "client-00", "client-01"]
    assert [len(client.train) for client in clients] == [15, 6, 5]
    assert [record.instruction for record in clients[0].train] == [
        *(f"one {i}" for i in range(10)),
        *(f"three {i}" for i in range(5)),
    ]
    assert clients == build_clients(data, 0)
    assert clients != build_clients(data, 1)


def test_held_out_share_of_every_client(source):
    sources = (source("one", 20, client="a"), source("two", 2, client="b"))
    clients = build_clients(Data(sources=sources, held_out=0.2), 0)
    assert [(len(client.train), len(client.held_out)) for client in clients] == [(16, 4), (1, 1)]


NO_NAMES = ["", "..", "a/b", "a\n", "a\\b", "C:", "../x", "/x", "a\0b", " a", "a ", "-", "x" * 101]
NO_NAMES += ["\uff0e\uff0e", "a\u2215b"]  # which look like ".." and "a/b"


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_of_a_client(name):
    """Refused before any file is read: this one does not exist."""
    with pytest.raises(UserError, match="is no name of a client: use at most 100 letters"):
        build_clients(Data(sources=(Source(path="gone.json", client=name),)), 0)


@pytest.mark.parametrize(
    "names", [("client-00", None), ("Ann", "ann"), ("Client-01", None), ("Süd", "Su\u0308d")]
)
def test_clashing_client_names(source, names):
    sources = [source(f"s{i}", 9, client=name) for i, name in enumerate(names)]
    with pytest.raises(UserError, match="two clients would be called"):
        build_clients(Data(sources=tuple(sources), split=Split(clients=2)), 0)


def test_a_category_that_clashes_with_a_client(source):
    sources = (source("one", 4, client="code"), source("two", 4, "Code"))
    with pytest.raises(UserError, match="'code' and 'code'"):
        build_clients(Data(sources=sources, split=Split(by="column")), 0)


def test_an_empty_client(source):
    with pytest.raises(UserError, match="client 'client-02' has no training records: lower split"):
        build_clients(Data(sources=(source("one", 2),), split=Split(clients=3)), 0)


def test_no_sources():
    with pytest.raises(UserError, match=r"no data: add \[\[data.sources\]\]"):
        build_clients(Data(), 0)


def test_errors_of_sources_come_through(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        build_clients(Data(sources=(Source(path=str(tmp_path / "gone.json")),)), 0)


# All clients together


def test_pool():
    clients = [hold_out(name, made(size), 0.3, 0) for name, size in (("a", 10), ("b", 5))]
    everyone = pool_clients(clients)
    assert everyone.name == "all"
    assert everyone.train == clients[0].train + clients[1].train
    assert everyone.held_out == clients[0].held_out + clients[1].held_out


def test_describe():
    said = (Turn("system", "be brief"), Turn("user", "how  are\nyou"))
    train = (Record(said, "I am well"), Record(said[1:], "well", "chat"), record(0, "chat"))
    rows = describe_clients([ClientData("a", train, train[:1]), ClientData("b", ())])
    assert rows == [
        {
            "name": "a",
            "records": 3,
            "held_out": 1,
            "mean_prompt_words": 10 / 3,
            "mean_response_words": 5 / 3,
            "categories": {"chat": 2},
        },
        {
            "name": "b",
            "records": 0,
            "held_out": 0,
            "mean_prompt_words": 0,
            "mean_response_words": 0,
            "categories": {},
        },
    ]
    assert json.loads(json.dumps(rows)) == rows
