"""Checks that need more than two texts: lexical support, the simulated check, and the gate."""

from collections.abc import Sequence

import pytest

from fedsdr.core.errors import UserError
from fedsdr.data.records import Record, Turn
from fedsdr.distillation.checks import Candidate, Rewrite, RewriteCheck, Verdict
from fedsdr.distillation.oracle import oracle_judge
from fedsdr.distillation.support import (
    content_terms,
    kept_share,
    rare_words,
    support_judge,
    supported_share,
)
from fedsdr.distillation.verify import all_of, build_verifier, check_verifier
from fedsdr.recipe.load import parse_recipe
from fedsdr.recipe.methods import named_recipe
from fedsdr.recipe.sections.distill import Distill, Oracle, Support


def record(response: str = "x", instruction: str = "q", answer: str = "") -> Record:
    return Record((Turn("user", instruction),), response, answer=answer)


def candidate(
    text: str, of: Record | None = None, attempt: int = 0, finished: bool = True
) -> Candidate:
    return Candidate(of or record(), Rewrite(text, finished), attempt)


# --- Lexical support


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The dose is 1,200.50 mg.", {"dose", "1200.5", "mg"}),
        ("1,2 and 3", {"1", "2", "3"}),  # a list, no thousands
        ("007 0.50 2.0", {"7", "0.5", "2"}),
        ("a 3rd covid19 B12", {"3rd", "covid19", "b12"}),
        ("It's not the one", set()),
        ("", set()),
    ],
)
def test_terms(text, found):
    assert content_terms(text) == found


def test_support_is_counted_by_hand():
    raw = record("Take 5 mg aspirin daily.", "How much aspirin for fever?")
    # fever 5 mg aspirin | 10 tablets; "take" is a stop word
    assert supported_share(raw, "For fever take 5 mg aspirin, or 10 tablets.") == pytest.approx(
        4 / 6
    )
    assert supported_share(raw, "") == 1
    # of 5, aspirin, daily: one number, two rare words
    assert kept_share(raw, "Take 5 mg.", {"aspirin", "daily"}) == pytest.approx(1 / 3)
    assert kept_share(raw, "Aspirin, 5.0 mg, daily", {"aspirin", "daily"}) == 1
    assert kept_share(record("yes"), "no", set()) == 1  # nothing that must survive


def test_words_are_rare_by_the_clients_own_records():
    records = [record(f"common word{i} word{i // 2}") for i in range(20)]
    assert "common" not in rare_words(records, 0.1)
    assert "word0" in rare_words(records, 0.1)  # in two records of 20
    assert "word0" not in rare_words(records, 0.05)
    assert "word19" in rare_words(records, 0.0)  # one record is always few


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("aspirin 5 mg", ""),
        ("aspirin 6 mg", "facts_lost"),  # 2 of 3 terms have support, but 5 is gone
        ("drink plenty of water", "unsupported"),
    ],
)
def test_the_support_check(text, reason):
    of = record("aspirin 5 mg")
    judge = support_judge(Support(supported=0.5, kept=0.9, rare=1.0), [of])
    (verdict,) = judge([candidate(text, of)])
    assert verdict.reason == reason
    assert set(verdict.measured) == {"supported", "kept"}


# --- The simulated check

GOLD = [record(f"r{i}", f"q{i}", answer="gold") for i in range(2000)]


def refused(options: Oracle, text: str, seed: int = 0, attempt: int = 0) -> list[bool]:
    judge = oracle_judge(options, seed)
    return [v.reason == "doubted" for v in judge([candidate(text, r, attempt) for r in GOLD])]


def test_the_oracle_without_errors_knows_the_answer():
    assert not any(refused(Oracle(), "it is gold"))
    assert all(refused(Oracle(), "it is lead"))


def test_the_oracle_errs_at_its_rates():
    """Within four standard deviations of a binomial of 2,000."""
    options = Oracle(false_accept=0.25, false_reject=0.1)
    assert sum(refused(options, "gold")) / 2000 == pytest.approx(0.1, abs=0.027)
    assert 1 - sum(refused(options, "lead")) / 2000 == pytest.approx(0.25, abs=0.039)
    assert all(refused(Oracle(false_reject=1.0), "gold"))
    assert not any(refused(Oracle(false_accept=1.0), "lead"))


def test_the_oracle_is_a_function_of_seed_record_and_attempt():
    options = Oracle(false_reject=0.3)
    first = refused(options, "gold")
    assert first == refused(options, "gold")
    assert first != refused(options, "gold", seed=1)
    assert first != refused(options, "gold", attempt=1)
    more = refused(Oracle(false_reject=0.6), "gold")
    assert all(b for a, b in zip(first, more, strict=True) if a)  # it errs again where it did


@pytest.mark.parametrize("part", ["response", "instruction"])
def test_the_oracle_judges_records_that_differ_in_one_text_apart(part):
    judge = oracle_judge(Oracle(false_reject=0.5), 0)
    other = [record(**{part: f"text {i}"}, answer="gold") for i in range(100)]
    wrong = sum(
        verdict.reason == "doubted" for verdict in judge([candidate("gold", r) for r in other])
    )
    assert 25 < wrong < 75  # five standard deviations


def test_the_oracle_lets_pass_what_has_no_gold_answer():
    judge = oracle_judge(Oracle(false_reject=1.0), 0)
    assert judge([candidate("anything", record())]) == [Verdict()]


# --- The gate


def test_a_judge_sees_in_one_batch_what_those_before_it_let_pass():
    seen: list[list[str]] = []

    def judge(refuses: str) -> RewriteCheck:
        def each(candidates: Sequence[Candidate]) -> list[Verdict]:
            seen.append([c.rewrite.text for c in candidates])
            return [
                Verdict(refuses if c.rewrite.text == refuses else "", {refuses: 1.0})
                for c in candidates
            ]

        return each

    verdicts = all_of([judge("a"), judge("b")])([candidate(text) for text in "abcab"])
    assert [v.reason for v in verdicts] == ["a", "b", "", "a", "b"]
    assert seen == [list("abcab"), list("bcb")]
    assert verdicts[0].measured == {"a": 1.0}
    assert verdicts[2].measured == {"a": 1.0, "b": 1.0}
    assert all_of([])([candidate("a")]) == [Verdict()]


def test_checks_of_all_kinds_stand_in_one_gate():
    of = record("aspirin 5 mg", answer="5")
    options = Distill(checks=("truncated", "support", "oracle"), support=Support(kept=0.9))
    gate = build_verifier(options, 0, "cpu").gate([of])
    texts = [("aspirin 5 mg", False), ("water", True), ("aspirin 5 mg", True)]
    verdicts = gate([candidate(text, of, finished=finished) for text, finished in texts])
    assert [v.reason for v in verdicts] == ["truncated", "unsupported", ""]


def test_an_oracle_without_gold_answers_is_refused():
    options = Distill(checks=("oracle",))
    check_verifier(options, [record(), record(answer="5")], "cpu")
    with pytest.raises(UserError, match=r"needs gold answers.*fields\.answer"):
        check_verifier(options, [record()], "cpu")


# --- Verified distillation by name


@pytest.mark.parametrize(
    ("distill", "checks", "attempts"),
    [
        ({"checks": ["empty"]}, ("empty", "answer"), 4),
        ({"checks": ["empty"], "verify": ["support", "number"]}, ("empty", "support", "number"), 4),
        ({"checks": ["answer"], "attempts": 7}, ("answer",), 7),
        ({"checks": [], "attempts": 2}, ("answer",), 4),
    ],
)
def test_fedsd_verified_adds_the_recipes_checks(distill, checks, attempts):
    recipe = parse_recipe({"model": {"path": "lab"}, "distill": distill})
    verified = named_recipe("fedsd_verified", recipe).distill
    assert (verified.checks, verified.attempts) == (checks, attempts)
