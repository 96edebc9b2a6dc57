"""The check "self": a rewrite follows its reference, by the base model's own word."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record
from fedsdr.distillation import self_check
from fedsdr.distillation.cache import RewriteCache
from fedsdr.distillation.checks import Candidate, Rewrite, Verdict
from fedsdr.distillation.rewrite import rewrite_records
from fedsdr.distillation.self_check import (
    FollowedShares,
    draw_references,
    followed_share,
    least_score,
    self_judge,
)
from fedsdr.distillation.teacher import Teacher, rewriting_job
from fedsdr.distillation.verify import build_verifier
from fedsdr.model.trials import plain_logits
from fedsdr.recipe.load import parse_recipe
from support.rewriting import CHAT, Counter, options, record, teacher

WORDS = ("a", "b", "c", "d", "e", "x", "y", "z")


# --- The statistic


def test_followed_share_is_counted_by_hand():
    own = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    others = torch.tensor([[0.5, 0.1, 0.4], [1.0, 0.0, 0.0]])
    # The own reference moves 0.4, all of it to token 1, and nothing at the second place.
    assert followed_share(own, others, torch.tensor([1, 0])) == pytest.approx(1)
    assert followed_share(own, others, torch.tensor([0, 0])) == pytest.approx(0)
    assert followed_share(own, others, torch.tensor([2, 0])) == pytest.approx(-1)


def test_without_influence_nothing_is_followed():
    same = torch.full((2, 4), 0.25)
    assert followed_share(same, same, torch.tensor([0, 3])) == 0


@pytest.mark.parametrize("seed", range(5))
def test_followed_share_is_a_share(seed):
    draw = torch.Generator().manual_seed(seed)
    own, others = (torch.rand(6, 9, generator=draw).softmax(-1) for _ in range(2))
    best = (own - others).argmax(-1)
    shares = [followed_share(own, others, text) for text in (best, torch.arange(6))]
    assert -1 <= shares[1] <= shares[0] <= 1


# --- The threshold


def test_the_threshold_is_that_of_benjamini_and_hochberg():
    """Against the step-up rule of p-values, as scipy states it."""
    from scipy.stats import false_discovery_control

    draw = torch.Generator().manual_seed(1)
    false = torch.rand(200, generator=draw).tolist()
    own = [*torch.rand(20, generator=draw).tolist(), *(1 + i / 100 for i in range(40))]
    p = [(1 + sum(f >= score for f in false)) / 201 for score in own]
    accepted = {s for s, q in zip(own, false_discovery_control(p), strict=True) if q <= 0.1}
    assert least_score(own, false, 0.1) == min(accepted)
    assert 40 <= len(accepted) < 60


def test_nothing_is_accepted_on_too_few_scores_of_known_falsity():
    assert least_score([1.0] * 50, [0.0] * 48, 0.02) == math.inf
    assert least_score([1.0] * 50, [0.0] * 49, 0.02) == 1.0
    assert least_score([], [0.0] * 99, 0.02) == math.inf


def test_the_share_of_false_ones_is_bounded_where_they_score_like_known_falsities():
    """Over many draws the mean share of false ones among the accepted is at most the level."""
    draw = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(300):
        false = torch.randn(120, generator=draw).tolist()
        wrong = torch.randn(20, generator=draw)
        right = 3 + torch.randn(20, generator=draw)
        least = least_score([*wrong.tolist(), *right.tolist()], false, 0.1)
        accepted = int((wrong >= least).sum()) + int((right >= least).sum())
        shares.append(int((wrong >= least).sum()) / max(1, accepted))
    mean = sum(shares) / len(shares)
    assert 0.02 < mean < 0.065  # half are wrong: 0.05 is expected


# --- The references


def test_exchanged_responses_are_distinct_others_that_the_text_does_not_state():
    records = [record(f"q{i}", answer) for i, answer in enumerate(["yes", "no", "maybe", "no"])]
    labels = ["yes", "no", "maybe"]
    asked = Candidate(records[0], Rewrite("It is NO.", True))
    assert draw_references(asked, labels, 5, 0) == []  # "maybe" alone cannot be compared
    asked = Candidate(records[0], Rewrite("Yes.", True))
    assert sorted(draw_references(asked, labels, 5, 0)) == ["maybe", "no"]


def test_references_depend_on_record_attempt_and_seed_alone():
    records = [record(f"q{i}", f"answer {i}") for i in range(30)]
    asked = Candidate(records[3], Rewrite("x", True))
    responses = [each.response for each in records]
    first = draw_references(asked, responses, 3, 0)
    assert first == draw_references(asked, responses, 3, 0)
    assert first != draw_references(asked._replace(attempt=1), responses, 3, 0)
    assert first != draw_references(asked, responses, 3, 1)
    assert len({*first}) == 3
    assert records[3].response not in first


# --- The judge


def candidates(texts: Sequence[str], records: Sequence[Record]) -> list[Candidate]:
    return [Candidate(r, Rewrite(text, True)) for r, text in zip(records, texts, strict=True)]


def test_scores_are_those_of_plain_logits(monkeypatch):
    """Of a random model, text by text, without batches and without a cache."""
    monkeypatch.setattr(self_check, "LOGITS_AT_ONCE", 3000)  # several groups
    records = [record(f"q {a}", f"{a} {b}") for a, b in itertools.pairwise(WORDS)]
    given, base = options(self_check={"false_share": 0.9, "references": 2}), teacher()
    responses = [each.response for each in records]
    asked = candidates(["b a", "x y z", "c", "q q", "d", "e a", "z z"], records)
    found = self_judge(base, records, given, 0)(asked)
    for each, verdict in zip(asked, found, strict=True):
        shown = [each.record.response, *draw_references(each, responses, 2, 0)]
        text = torch.tensor(CHAT.response_ids(each.rewrite.text))
        p = []
        for response in shown:
            job = rewriting_job(CHAT, replace(each.record, response=response), given, 0, 0)
            logits = plain_logits(base.model, [*job.prompt, *text.tolist()]).detach()
            p.append(logits[len(job.prompt) - 1 : -1].softmax(-1))
        wanted = followed_share(p[0], p[1], text)
        assert verdict.measured["followed"] == pytest.approx(max(0, wanted), abs=1e-4)


def scored(monkeypatch, own: Sequence[float], exchanged: float = 0.0) -> None:
    """Let the model's scores be these, in order, with `exchanged` for each known falsity."""
    left = iter(own)

    def score(_: Teacher, asked):
        for requests in asked:
            yield FollowedShares(next(left), [exchanged] * (len(requests) - 1))

    monkeypatch.setattr(self_check, "score_rewrites", score)


def test_what_scores_like_a_known_falsity_is_refused(monkeypatch):
    records = [record(f"q{i}", f"w{i}") for i in range(20)]
    scored(monkeypatch, [0.9] * 15 + [-0.1] * 5)
    found = self_judge(teacher(), records, options(), 0)(candidates(["x"] * 20, records))
    assert (
        found
        == [Verdict("", {"followed": 0.9})] * 15
        + [Verdict("ignores_reference", {"followed": 0.0})] * 5
    )


def test_scores_are_kept_for_later_batches(monkeypatch):
    """A batch of one could never be accepted by its own few scores."""
    records = [record(f"q{i}", f"w{i}") for i in range(20)]
    scored(monkeypatch, [0.9] * 21)
    judge = self_judge(teacher(), records, options(), 0)
    judge(candidates(["x"] * 20, records))
    [last] = judge(candidates(["x"], records[:1]))
    assert last.reason == ""


def test_few_records_are_compared_with_more_references(monkeypatch):
    seen = []

    def score(_: Teacher, asked):
        for requests in asked:
            seen.append(len(requests) - 1)
            yield FollowedShares(0.9, [0.0] * (len(requests) - 1))

    monkeypatch.setattr(self_check, "score_rewrites", score)
    records = [record(f"q{i}", f"w{i}") for i in range(12)]
    found = self_judge(teacher(), records, options(), 0)(candidates(["x"] * 12, records))
    assert {*seen} == {9}  # 12 x 9 scores, for a level of 0.02
    assert {verdict.reason for verdict in found} == {""}


def test_without_three_distinct_responses_nothing_is_checked():
    records = [record("q", "yes"), record("r", "no"), record("s", "no")]
    found = self_judge(teacher(), records, options(), 0)(candidates(["x", "y", "z"], records))
    assert [verdict.reason for verdict in found] == ["not_compared"] * 3


def test_what_the_model_has_no_room_for_is_not_checked():
    records = [record(f"q{i}", "a b c d") for i in range(3)] + [
        record(f"r{i}", " ".join([word] * 40)) for i, word in enumerate(WORDS)
    ]
    near = teacher(context=30)  # too little for other requests, enough for the own one
    found = self_judge(near, records, options(), 0)(candidates(["x"], records[:1]))
    assert found == [Verdict("not_compared")]


def test_a_rewrite_that_has_no_room_itself_is_not_compared():
    """An exchanged reference must not be taken for the own one."""
    long = record("q", " ".join(["a"] * 40))
    records = [long, *(record(f"r{i}", word) for i, word in enumerate(WORDS))]
    found = self_judge(teacher(context=30), records, options(), 0)(candidates(["x"], [long]))
    assert found == [Verdict("not_compared")]


def test_rewriting_with_the_check_ends_with_the_same_verdicts_from_the_cache(tmp_path):
    records = [record(f"q {a} {b}", f"{a} {b}") for a in WORDS for b in WORDS[:3]]
    given = options(checks=("empty", "self"), attempts=2, temperature=1.0)

    def rewritten():
        gate = build_verifier(given, 0, "cpu", teacher()).gate(records)
        with RewriteCache(tmp_path / "cache.sqlite") as cache:
            return rewrite_records(teacher(), records, given, cache, 0, Counter(), gate)

    first = rewritten()
    assert first == rewritten()
    assert "ignores_reference" in {each.reason for each in first}  # of a random model


# --- The recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"path": "lab", "thinking": "on"}}, "thoughts"),
        ({"federation": {"targets": "distilled", "loss": "on_policy"}}, "on_policy"),
    ],
)
def test_what_the_check_cannot_judge_is_an_error(changes, words):
    tables = {"model": {"path": "lab"}, "distill": {"checks": ["self"]}}
    with pytest.raises(UserError, match=words):
        parse_recipe({**tables, **changes})
