"""The diagnostics on 2,000 real pairs: Alpaca's responses and Llama-2-7B-chat's rewrites."""

import json

import pytest

from experiments.chapters.real_text import pseudo_clients
from experiments.paired import PairedComparison, compare_pairs
from support.real_data import data_file

CLUSTERS = 5


def column(file: str, name: str) -> list[str]:
    path = data_file(f"paired/{file}")
    return [row[name] for row in json.loads(path.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module", params=[0, 1, 2])
def pairs(request: pytest.FixtureRequest) -> PairedComparison:
    """In five clusters of like instructions, the clustering drawn anew by each seed."""
    raw = column("alpaca_raw.json", "output")
    rewritten = column("alpaca_distilled_llama2_7b_chat.json", "output")
    groups = pseudo_clients(column("alpaca_raw.json", "instruction"), CLUSTERS, request.param)
    assert len(set(groups)) == CLUSTERS
    return compare_pairs(raw, rewritten, groups, request.param)


def test_rewrites_are_longer_and_hold_more_filler(pairs):
    assert (pairs.pairs, pairs.fallbacks) == (2000, 352)
    before, after = pairs.raw.stats, pairs.rewritten.stats
    assert [round(before.words, 1), round(after.words, 1)] == [45.0, 107.3]
    assert before.filler == pytest.approx(0.11, abs=0.01)
    assert after.filler == pytest.approx(0.34, abs=0.01)
    assert before.repetitive <= after.repetitive < 0.01
    assert after.types < before.types


def test_rewrites_bring_clusters_together(pairs):
    """By both measures, as in the paper ..."""
    before, after = pairs.raw, pairs.rewritten
    for view in ("full", "thinned"):
        assert getattr(after, view).js < getattr(before, view).js
        assert getattr(after, view).tfidf_cosine > getattr(before, view).tfidf_cosine


def test_most_of_it_is_length(pairs):
    """... but little is left of it at like lengths, and of that a part is seen in groups dealt by
    chance too, whose subjects are alike before and after."""
    before, after = pairs.raw, pairs.rewritten
    full, thinned, chance = (
        getattr(before, view).js - getattr(after, view).js for view in ("full", "thinned", "chance")
    )
    assert thinned < 0.5 * full
    assert chance > 0.3 * thinned
