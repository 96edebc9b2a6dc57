"""Verdicts: a claim holds or fails only where the interval of the paired difference leaves zero."""

import pytest

from fedsdr.evaluate.claims import CLAIMS, PERSONAL_FACTS, PaperClaim, judge_claim, judge_claims

UP = PaperClaim("a beats b", "general", "a", "b", True, ("general", "length", "client_facts"))
DOWN = UP._replace(higher=False)
B = [40.0, 50.0, 60.0]


def runs(a: list[float], b: list[float], metric: str = "general"):
    return {"a": [{metric: v} for v in a], "b": [{metric: v} for v in b]}


@pytest.mark.parametrize(
    ("a", "up", "down"),
    [
        ([45.0, 56.0, 65.0], "holds", "fails"),  # +5, +6, +5
        ([35.0, 44.0, 55.0], "fails", "holds"),
        ([41.0, 49.0, 60.5], "open", "open"),
        ([140.0, 51.0, 60.0], "open", "open"),  # a large mean, by one seed alone
        (B, "open", "open"),  # an interval of a point, which is zero
        ([41.0, 51.0, 61.0], "holds", "fails"),  # an interval of a point, which is not
    ],
)
def test_verdicts(a, up, down):
    assert judge_claim(UP, runs(a, B))["verdict"] == up
    assert judge_claim(DOWN, runs(a, B))["verdict"] == down


@pytest.mark.parametrize("a", [0.0, 50.0, 100.0])
def test_one_seed_leaves_every_claim_open(a):
    verdict = judge_claim(UP, runs([a], [50.0]))
    assert verdict["verdict"] == "open"
    assert "one seed: no interval" in verdict["words"]


def test_two_seeds_leave_every_claim_open():
    assert judge_claim(UP, runs([60.0, 60.1], [50.0, 50.0]))["verdict"] == "open"
    assert judge_claim(UP, runs([60.0, 60.1, 60.0], [50.0, 50.0, 50.0]))["verdict"] == "holds"


def test_the_words_give_the_difference_its_interval_and_the_context():
    mine = [{"general": 50.0, "client_facts": 7.0}, {"general": 54.0, "client_facts": 8.0}]
    theirs = [{"general": 40.0, "client_facts": 1.0}, {"general": 40.0, "client_facts": 2.0}]
    verdict = judge_claim(UP, {"a": mine, "b": theirs})
    # differences 10 and 14: mean 12, standard error 2, t(0.975, 1) = 12.706
    assert verdict == {
        "claim": "a beats b",
        "verdict": "open",
        "words": "general knowledge: +12.0 (95 % interval -13.4 to +37.4, 2 seeds). "
        "general knowledge 52.0 against 40.0; client facts 7.5 against 1.5",
    }


# --- Which claims are judged

WORSE = {"general": 50.0, "hallucination": 50.0, "length": 14.0, "client_facts": 50.0}


def table(**methods: dict[str, float]) -> dict[str, list[dict[str, float]]]:
    """Three equal seeds for each method."""
    return {name: [{**WORSE, **metrics}] * 3 for name, metrics in methods.items()}


def verdicts(found) -> dict[str, str]:
    return {verdict["claim"]: verdict["verdict"] for verdict in found}


def test_each_claim_is_about_its_own_metric_and_direction():
    better = {
        "fedavg": {},
        "fedsd": {"general": 60.0},
        "fedsd_verified": {"client_facts": 60.0},
        "fedsdr": {"hallucination": 40.0, "length": 6.0},
    }
    texts = [claim.text for claim in CLAIMS]
    assert verdicts(judge_claims(table(**better), "fedsdr")) == dict.fromkeys(texts, "holds")
    worse = {
        "fedavg": {"general": 70.0},
        "fedsd": {},
        "fedsd_verified": {"client_facts": 40.0},
        "fedsdr": {"hallucination": 60.0, "length": 15.0},
    }
    assert verdicts(judge_claims(table(**worse), "fedsdr")) == dict.fromkeys(texts, "fails")
    same = {name: {} for name in better}
    assert verdicts(judge_claims(table(**same), "fedsdr")) == dict.fromkeys(texts, "open")


@pytest.mark.parametrize(
    ("methods", "count"),
    [
        ((), 0),
        (("fedsdr",), 0),
        (("fedavg", "fedsd"), 1),
        (("fedsd", "fedsdr"), 2),
        (("fedsd", "fedsd_verified"), 1),
        (("fedavg", "fedsd", "fedsd_verified", "fedsdr"), 4),
    ],
)
def test_only_claims_about_methods_that_were_run_are_judged(methods, count):
    assert len(judge_claims(table(**{name: {} for name in methods}), "fedsdr")) == count


def test_a_metric_that_a_run_lacks_leaves_the_claim_out():
    found = table(fedavg={}, fedsd={})
    found["fedsd"][1] = {"loss": 1.0}
    assert judge_claims(found, "fedsdr") == []


def test_another_own_method_stands_in_fedsdrs_place():
    found = table(fedsd={}, mine={"hallucination": 40.0, "length": 6.0})
    assert list(verdicts(judge_claims(found, "mine")).values()) == ["holds", "holds"]
    assert judge_claims(found, "fedsdr") == []


# --- Personal models


@pytest.mark.parametrize(("own", "verdict"), [(90.0, "holds"), (70.0, "fails"), (80.0, "open")])
def test_personal_models_are_put_against_the_best_other(own, verdict):
    found = {
        "base": [{PERSONAL_FACTS: 99.0}] * 3,
        "local": [{PERSONAL_FACTS: 80.0}] * 3,
        "fedavg": [{PERSONAL_FACTS: 60.0}] * 3,
        "fedsdr": [{PERSONAL_FACTS: own}] * 3,
    }
    (only,) = judge_claims(found, "fedsdr")
    assert only["verdict"] == verdict
    assert only["words"].startswith("the best other is local. personal client facts:")
    assert f"{own:.1f} against 80.0" in only["words"]


@pytest.mark.parametrize("methods", [("fedsdr",), ("base", "fedsdr"), ("fedavg", "local")])
def test_personal_models_without_another_to_compare_are_not_judged(methods):
    found = {name: [{PERSONAL_FACTS: 50.0}] * 2 for name in methods}
    assert judge_claims(found, "fedsdr") == []
