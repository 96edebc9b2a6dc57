"""Diagnostics against scipy, scikit-learn, autograd written out, and sums done by hand."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from torch.func import functional_call

from experiments.chapters.real_text import pseudo_clients
from experiments.paired import compare_pairs
from fedsdr.core import adapters
from fedsdr.core.adapters import A_SUFFIX, B_SUFFIX, FOLDED, Adapter
from fedsdr.core.errors import UserError
from fedsdr.data.batches import collate_examples
from fedsdr.data.example import Example
from fedsdr.diagnosis.divergence import (
    js_divergence,
    js_matrix,
    mean_js,
    sample_words,
    tfidf_cosine,
    tfidf_matrix,
)
from fedsdr.diagnosis.gradients import client_gradients, pairwise_cosine
from fedsdr.diagnosis.maps import response_map
from fedsdr.diagnosis.pairwise import Pairwise, pairwise_matrix
from fedsdr.diagnosis.text import FILLERS, has_filler, split_words, text_stats
from fedsdr.diagnosis.transfer import loss_matrix, transfer_gap
from fedsdr.model.lora import Stream, TwoStreamModel
from support.diagnosed_clients import EXAMPLES, PAD, new_model
from support.tiny_models import random_adapter, start_adapter

R, F = Stream.RECTIFY, Stream.FOLDED
CLIENTS = {
    "anna": ["The cat sees a dog.", "the dog"],
    "ben": ["A dog likes the red bird", "red, red!"],
    "cleo": ["green", "Is the bird green or blue? Blue"],
}
COUNTS = st.dictionaries(st.integers(0, 8), st.integers(0, 50), min_size=1).filter(
    lambda counts: sum(counts.values()) > 0
)


# --- Text


def test_stats_by_hand():
    texts = ["Sure! Here is a cat", "a dog and  a\ncat", "so it goes " * 8, ""]
    stats = text_stats(texts)
    assert stats.words == (5 + 5 + 24 + 0) / 4
    assert stats.filler == 1 / 4
    assert stats.repetitive == 1 / 4
    assert stats.types == len("sure here is a cat dog and so it goes".split()) / (5 + 5 + 24)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        *((f"x {phrase.upper()}, y", True) for phrase in FILLERS),
        ("Here\n  are three", True),
        ("Here\N{RIGHT SINGLE QUOTATION MARK}s one", True),
        ("sure", True),
        ("unsure, assured, surely", False),
        ("There is, where are", False),
        ("here isotopes", False),
        ("", False),
    ],
)
def test_fillers_are_whole_words(text, found):
    assert has_filler(text) is found


def test_text_without_words():
    assert text_stats(["!", " "]) == (0.5, 0.0, 0.0, 0.0)
    with pytest.raises(UserError, match=r"texts = \[\]"):
        text_stats([])


# --- Divergence


@given(COUNTS, COUNTS)
def test_js_is_scipys_distance_squared(p, q):
    tokens = sorted({*p, *q})
    vectors = [[counts.get(token, 0) for token in tokens] for counts in (p, q)]
    bits = js_divergence(p, q)
    assert bits == pytest.approx(jensenshannon(*vectors, base=2) ** 2, abs=1e-12)
    assert js_divergence(p, q, base=math.e) == pytest.approx(bits * math.log(2))
    assert js_divergence(q, p) == bits
    assert -1e-12 <= bits <= 1 + 1e-12
    assert js_divergence(p, {token: 3 * n for token, n in p.items()}) == pytest.approx(0, abs=1e-12)


def test_js_by_hand():
    assert js_divergence({"a": 2}, {"a": 1, "b": 1}) == pytest.approx(
        (math.log2(4 / 3) + (math.log2(2 / 3) + math.log2(2)) / 2) / 2
    )
    assert js_divergence({"a": 2}, {"b": 5}) == 1
    assert js_divergence({"a": 2, "b": 1}, {"b": 1, "a": 2}) == 0


@pytest.mark.parametrize("counts", [{}, {"a": 0}, {"a": 2, "b": -1}, {"a": math.nan}])
def test_js_needs_counts(counts):
    with pytest.raises(UserError, match=r"counts from .* add up to"):
        js_divergence({"a": 1}, counts)


@pytest.mark.parametrize("mean", [mean_js, tfidf_cosine])
def test_clients_that_cannot_be_compared(mean):
    for clients, said in (
        ({}, r"clients = \[\]"),
        ({"anna": ["a"]}, r"clients = \['anna'\]"),
        ({"anna": ["a"], "ben": []}, "'ben' has no words"),
        ({"anna": ["a"], "ben": ["?"]}, "'ben' has no words"),
        ({"anna": "a text", "ben": ["a"]}, "'anna' has one string"),
    ):
        with pytest.raises(UserError, match=said):
            mean(clients)


def test_js_matrix_is_that_of_the_words():
    found = js_matrix(CLIENTS)
    vocabulary = sorted(
        {word for texts in CLIENTS.values() for word in split_words(" ".join(texts))}
    )
    vectors = [
        [split_words(" ".join(t)).count(word) for word in vocabulary] for t in CLIENTS.values()
    ]
    expected = [[jensenshannon(a, b, base=2) ** 2 for b in vectors] for a in vectors]
    np.testing.assert_allclose(found.matrix, expected, atol=1e-12)
    assert mean_js(CLIENTS) == pytest.approx(np.mean(found.matrix[np.triu_indices(3, 1)]))


def test_tfidf_matrix_is_scikit_learns():
    documents = [" ".join(texts) for texts in CLIENTS.values()]
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True)
    expected = cosine_similarity(vectorizer.fit_transform(documents))
    np.testing.assert_allclose(tfidf_matrix(CLIENTS).matrix, expected, atol=1e-12)
    assert tfidf_cosine(CLIENTS) == pytest.approx(np.mean(expected[np.triu_indices(3, 1)]))


def test_tfidf_by_hand():
    """b is in one document of two, a in both and twice in the first."""
    rare, often = math.log(3 / 2) + 1, 1 + math.log(2)
    expected = often / math.hypot(often, rare)
    assert tfidf_cosine({"anna": ["a b", "A"], "ben": ["a"]}) == pytest.approx(expected)


def test_the_same_clients_and_those_with_nothing_in_common():
    same = {"anna": ["a b", "c"], "ben": ["c", "b a"], "cleo": ["A, B c!"]}
    assert mean_js(same) == 0
    assert tfidf_cosine(same) == pytest.approx(1)
    apart = {"anna": ["a b"], "ben": ["c"], "cleo": ["d e"]}
    assert mean_js(apart) == pytest.approx(1)
    assert tfidf_cosine(apart) == 0


@pytest.mark.parametrize(("measure", "diagonal"), [(js_matrix, 0), (tfidf_matrix, 1)])
def test_the_order_of_clients_is_no_matter(measure, diagonal):
    found = measure(CLIENTS)
    np.testing.assert_array_equal(found.matrix, found.matrix.T)
    np.testing.assert_allclose(np.diag(found.matrix), diagonal, atol=1e-12)
    for order in itertools.permutations(range(3)):
        names = [tuple(CLIENTS)[i] for i in order]
        moved = measure({name: CLIENTS[name] for name in names})
        assert moved.names == tuple(names)
        np.testing.assert_allclose(moved.matrix, found.matrix[np.ix_(order, order)], rtol=1e-14)
        assert moved.mean == pytest.approx(found.mean, rel=1e-14)


def test_texts_may_be_tokens():
    known: dict[str, int] = {}
    ids = {
        name: [[known.setdefault(word, len(known)) for word in split_words(text)] for text in texts]
        for name, texts in CLIENTS.items()
    }
    assert mean_js(ids) == mean_js(CLIENTS)
    assert tfidf_cosine(ids) == pytest.approx(tfidf_cosine(CLIENTS))


def test_thin_draws_without_replacement():
    drawn = sample_words(CLIENTS, 6, seed=1)
    assert drawn == sample_words(CLIENTS, 6, seed=1)
    assert drawn != sample_words(CLIENTS, 6, seed=2)
    for name, texts in CLIENTS.items():
        assert len(drawn[name][0]) == 6
        assert Counter(drawn[name][0]) <= Counter(split_words(" ".join(texts)))
    anna = {"anna": CLIENTS["anna"]}
    assert Counter(sample_words(anna, 7)["anna"][0]) == Counter(
        split_words(" ".join(CLIENTS["anna"]))
    )
    for size in (0, 8):
        with pytest.raises(UserError, match=f"size = {size}: client 'anna' has 7 words"):
            sample_words(anna, size)


def test_thin_draws_each_word_as_often_as_it_occurs():
    clients = {"anna": ["a"] * 30 + ["b"] * 10}
    drawn = [sample_words(clients, 8, seed)["anna"][0].count("b") for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(2, abs=0.25)  # hypergeometric; its mean's error is 0.06


def test_pairwise_measures_each_pair_once():
    found = pairwise_matrix({"a": 1.0, "b": 2.0, "c": 5.0}, lambda x, y: abs(x - y))
    np.testing.assert_array_equal(found.matrix, [[0, 1, 4], [1, 0, 3], [4, 3, 0]])
    assert found.mean == 8 / 3
    assert Pairwise(("a", "b"), np.array([[9.0, 2.0], [2.0, 7.0]])).mean == 2


# --- Clusters and pairs


def test_pseudo_clients_are_about_like_things():
    texts = [f"sort the list {i}" for i in range(6)] + [f"boil some rice {i}" for i in range(6)]
    labels = pseudo_clients(texts, 2, seed=0)
    assert labels == pseudo_clients(texts, 2, seed=0)
    assert [len(set(labels[:6])), len(set(labels[6:])), len(set(labels))] == [1, 1, 2]
    for given_texts, clusters in (([], 2), (texts, 0)):
        with pytest.raises(UserError, match=f"clusters = {clusters} of {len(given_texts)}"):
            pseudo_clients(given_texts, clusters, seed=0)


def test_pairs_by_hand():
    raw = ["a b c d", "a b", "e f", "g h"]
    rewritten = ["Sure, x y z a b", "a b ", "Sure, x y z e f", "Sure, x y z g h"]
    found = compare_pairs(raw, rewritten, [0, 0, 1, 1])
    assert (found.pairs, found.fallbacks, found.thinned_to) == (4, 1, 4)
    assert found.raw.stats == text_stats(raw)
    assert found.rewritten.stats == text_stats(rewritten)
    assert found.raw.full == (1, 0)
    groups = {"anna": rewritten[:2], "ben": rewritten[2:]}
    assert found.rewritten.full == (mean_js(groups), tfidf_cosine(groups))
    table = {name: (before, after) for name, before, after in found.rows()}
    assert table["filler"] == (0, 0.75)
    assert table["js"] == (1, found.rewritten.full.js)
    assert table["thinned js"] == (1, found.rewritten.thinned.js)
    assert table["chance tfidf_cosine"][0] == found.raw.chance.tfidf_cosine
    assert len(table) == 10


def test_rewrites_that_change_nothing():
    texts = [text for texts in CLIENTS.values() for text in texts]
    found = compare_pairs(texts, texts, ["x", "x", "y", "y", "z", "z"])
    assert found.fallbacks == len(texts)
    assert found.raw == found.rewritten
    assert all(before == after for _, before, after in found.rows())


def test_longer_texts_of_the_same_words_lie_no_closer_when_thinned():
    """Every group draws its words from the same 300: what full sees is length alone."""
    draw = np.random.default_rng(0)
    raw, longer = (
        [" ".join(f"w{i}" for i in draw.integers(300, size=size)) for _ in range(200)]
        for size in (10, 30)
    )
    found = compare_pairs(raw, longer, [i % 4 for i in range(200)])
    assert found.rewritten.full.js < 0.5 * found.raw.full.js
    assert found.rewritten.thinned.js == pytest.approx(found.raw.thinned.js, rel=0.1)
    assert found.rewritten.chance.js == pytest.approx(found.rewritten.thinned.js, rel=0.1)


def test_groups_apart_are_more_apart_than_chance():
    texts = [f"{word} one two" for word in ("red", "blue") for _ in range(20)]
    found = compare_pairs(texts, texts, [0] * 20 + [1] * 20)
    assert found.raw.thinned.js > found.raw.chance.js + 0.1
    assert found.raw.thinned.tfidf_cosine < found.raw.chance.tfidf_cosine - 0.1


@pytest.mark.parametrize(
    ("raw", "rewritten", "groups"), [([], [], []), (["a"], ["a", "b"], [0]), (["a"], ["a"], [])]
)
def test_pairs_that_do_not_match(raw, rewritten, groups):
    with pytest.raises(UserError, match=f"{len(raw)} raw and {len(rewritten)} rewritten"):
        compare_pairs(raw, rewritten, groups)


# --- Maps

TOPICS = [f"sort the list of {i} numbers" for i in range(8)] + [
    f"boil {i} cups of rice slowly" for i in range(8)
]


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_map(method):
    found = response_map(TOPICS, method, seed=3)
    assert found.shape == (16, 2)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, response_map(TOPICS, method, seed=3))
    centres = found[:8].mean(axis=0), found[8:].mean(axis=0)
    own, other = (np.linalg.norm(found[:8] - centre, axis=1).mean() for centre in centres)
    assert own < other / 2


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_smallest_map(method):
    assert response_map(["a", "b", "a b"], method, seed=0).shape == (3, 2)


def test_map_keeps_distances_that_fit_the_plane():
    texts = ["a", "b", "a b", "a"]
    features = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit_transform(texts)
    points, expected = response_map(texts, "pca", seed=0), features.toarray()
    for i, j in itertools.combinations(range(4), 2):
        distance = np.linalg.norm(expected[i] - expected[j])
        assert np.linalg.norm(points[i] - points[j]) == pytest.approx(distance, abs=1e-9)


def test_maps_that_cannot_be():
    with pytest.raises(UserError, match="method = 'umap'"):
        response_map(TOPICS, "umap", seed=0)
    for texts, distinct in (([], 0), (["a"] * 9, 1), (["a b", "b, a", "c"], 2)):
        with pytest.raises(UserError, match=f"texts hold {distinct} different"):
            response_map(texts, "pca", seed=0)


# --- Gradients and transfer


def mean_loss(
    model: TwoStreamModel, shared: Adapter, given: list[Example], *streams: Stream
) -> torch.Tensor:
    """Token by token and example by example, with R's tensors given to the forward pass."""
    model.activate(R, *streams)
    named = {
        f"{key.removesuffix(end)}.{end[6]}.R": tensor
        for key, tensor in shared.items()
        for end in (A_SUFFIX, B_SUFFIX)
        if key.endswith(end)
    }
    losses = []
    for example in given:
        ids = torch.tensor([[*example.prompt, *example.response]])
        logits = functional_call(model.model, named, kwargs={"input_ids": ids}).logits[0]
        first = len(example.prompt)
        losses += [-logits[i - 1].log_softmax(0)[ids[0, i]] for i in range(first, ids.shape[1])]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_gradients_are_autograds(batch_size):
    model = new_model()
    shared = random_adapter(model.read(R), seed=9)
    found = client_gradients(model, EXAMPLES, shared, PAD, batch_size, limit=5)
    assert found.keys() == EXAMPLES.keys()
    for client, gradient in found.items():
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in shared.items()}
        mean_loss(new_model(), leaves, EXAMPLES[client][:5]).backward()
        adapters.check_same_keys(shared, gradient)
        for key, leaf in leaves.items():
            close(gradient[key], leaf.grad)


def close(a: torch.Tensor, b: torch.Tensor | None) -> None:
    """As the loss is taken in float32, whatever the model."""
    assert b is not None
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_at_the_first_adapter_are_of_b_alone():
    model = new_model()
    found = client_gradients(model, EXAMPLES, start_adapter(model), PAD, 4, limit=9)
    for gradient in found.values():
        for key, tensor in gradient.items():
            assert bool(tensor.any()) == key.endswith(B_SUFFIX)


def test_gradients_leave_the_model_off():
    model = new_model()
    shared, smooth = random_adapter(model.read(R), seed=9), model.read(Stream.SMOOTH)
    client_gradients(model, EXAMPLES, shared, PAD, 4, limit=2)
    assert adapters.norm(adapters.subtract(model.read(R), shared)) == 0
    assert adapters.norm(adapters.subtract(model.read(Stream.SMOOTH), smooth)) == 0
    assert all(p.grad is None and not p.requires_grad for p in model.model.parameters())
    assert_off(model)


def assert_off(model: TwoStreamModel) -> None:
    batch = collate_examples(EXAMPLES["anna"], PAD)
    out = model.model(input_ids=batch.ids).logits
    model.activate()
    assert torch.equal(out, model.model(input_ids=batch.ids).logits)


def test_what_is_folded_into_r_takes_part():
    model = new_model()
    shared, folded = random_adapter(model.read(R), seed=9), random_adapter(model.read(F), seed=8)
    sent = {**shared, **adapters.add_prefix(folded, FOLDED)}
    found = client_gradients(model, EXAMPLES, sent, PAD, 4, limit=3)["ben"]
    model.load(F, folded)
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in shared.items()}
    mean_loss(model, leaves, EXAMPLES["ben"][:3], F).backward()
    for key, leaf in leaves.items():
        close(found[key], leaf.grad)
    alone = client_gradients(model, EXAMPLES, shared, PAD, 4, limit=3)["ben"]
    assert adapters.cosine(found, alone) < 0.99


def test_gradients_that_cannot_be():
    model = new_model()
    shared = model.read(R)
    with pytest.raises(UserError, match="client 'ben' has no response tokens"):
        client_gradients(model, {"ben": []}, shared, PAD, 4, limit=2)
    with pytest.raises(UserError, match="batch_size = 0, limit = 2"):
        client_gradients(model, EXAMPLES, shared, PAD, 0, limit=2)
    with pytest.raises(UserError, match="batch_size = 3, limit = 0"):
        client_gradients(model, EXAMPLES, shared, PAD, 3, limit=0)
    with pytest.raises(ValueError, match="missing keys"):
        client_gradients(model, EXAMPLES, {}, PAD, 4, limit=2)


def test_pairwise_cosine():
    made = {name: {"x": torch.tensor(x)} for name, x in zip("abcd", VECTORS, strict=True)}
    found = pairwise_cosine(made)
    np.testing.assert_allclose(found.matrix[:3, :3], cosine_similarity(VECTORS[:3]), atol=1e-12)
    assert not found.matrix[3].any()  # the zero vector
    assert found.mean == pytest.approx((0.6 - 1 - 0.6) / 6)
    with pytest.raises(UserError, match=r"clients = \['a'\]"):
        pairwise_cosine({"a": made["a"]})


VECTORS = [[3.0, 4.0], [1.0, 0.0], [-6.0, -8.0], [0.0, 0.0]]


def test_loss_matrix_is_each_adapters_loss_on_each_clients_examples():
    model = new_model()
    given = {name: random_adapter(model.read(R), seed) for seed, name in enumerate(EXAMPLES)}
    found = loss_matrix(model, EXAMPLES, given, PAD, batch_size=3)
    assert list(found) == list(given)
    for trained, row in found.items():
        assert list(row) == list(EXAMPLES)
        for judged, loss in row.items():
            expected = mean_loss(new_model(), given[trained], EXAMPLES[judged])
            assert loss == pytest.approx(float(expected), rel=1e-5)
    assert_off(model)


def test_equal_adapters_and_examples_have_no_gap():
    model = new_model()
    same = dict.fromkeys(("anna", "ben"), model.read(R))
    given = dict.fromkeys(("anna", "ben"), EXAMPLES["anna"])
    assert transfer_gap(loss_matrix(model, given, same, PAD, batch_size=3)) == 0


def test_transfer_gap_by_hand():
    matrix = {"a": {"a": 1.0, "b": 4.0, "c": 9.0}, "b": {"a": 3.0, "b": 2.0, "c": 0.0}}
    assert transfer_gap(matrix) == (4 + 9 + 3 + 0) / 4 - (1 + 2) / 2
    for lacking in ({}, {"a": {"a": 1.0}}, {"a": {"b": 1.0}}):
        with pytest.raises(UserError, match="a gap needs"):
            transfer_gap(lacking)


def test_losses_that_cannot_be():
    model = new_model()
    one = {"anna": model.read(R)}
    with pytest.raises(UserError, match="client 'ben' has no response tokens"):
        loss_matrix(model, {"ben": []}, one, PAD, 3)
    with pytest.raises(UserError, match=r"adapters of \[\], examples of \['anna', 'ben', 'cleo'\]"):
        loss_matrix(model, EXAMPLES, {}, PAD, 3)
    with pytest.raises(UserError, match="batch_size = 0"):
        loss_matrix(model, EXAMPLES, one, PAD, 0)
