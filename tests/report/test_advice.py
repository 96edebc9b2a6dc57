"""Which method pays: what the report says of the methods' means and of their rewrites."""

import pytest

from fedsdr.report.advice import advise_methods
from fedsdr.report.load import Material, MethodRuns, ScoreEstimate, SeedRun


def method(name: str, distillation: dict | None = None, **scores: float) -> MethodRuns:
    run = SeedRun((), {"clients": distillation or {}}, {})
    return MethodRuns(name, {k: ScoreEstimate(v, 1) for k, v in scores.items()}, (run,))


def material(*methods: MethodRuns, seeds: int = 3) -> Material:
    return Material(
        kind="compare", name="", own="fedsdr2", seeds=tuple(range(seeds)), seconds=None,
        resumed=False, methods=methods, claims=(), partition=(), recipe="", environment={},
    )  # fmt: skip


def rewritten(records: int, accepted: int, wrong: float | None) -> dict:
    counts = {
        "records": records,
        "rewritten": accepted,
        "checked": 0 if wrong is None else accepted,
    }
    return {"hospital": {**counts, "wrong": wrong}}


BASE = method("base", client_facts=99.0, general=100.0)
FEDAVG = method("fedavg", client_facts=80.0, general=90.0)
FEDSD = method("fedsd", client_facts=60.0, general=99.0)
FEDSDR2 = method("fedsdr2", client_facts=97.0, general=98.0)


def test_the_front_of_global_models_is_named_and_the_base_model_is_not_on_it():
    (sentence,) = advise_methods(material(BASE, FEDAVG, FEDSD, FEDSDR2))
    assert sentence == (
        "Global models: the front of facts learnt and knowledge kept is FedSD (60.0, 99.0) and "
        "FedSDR2 (97.0, 98.0); any other is behind one of these in at least one, and ahead of it "
        "in neither."
    )
    (sentence,) = advise_methods(material(FEDAVG, FEDSD))
    assert sentence.endswith("none of them is ahead in one without being behind in the other.")


def test_what_cannot_be_chosen_is_on_no_front():
    """Pooled training shares all data."""
    central = method("central", client_facts=99.0, general=100.0)
    (sentence,) = advise_methods(material(BASE, FEDAVG, central, FEDSDR2))
    assert "FedSDR2 (97.0, 98.0)" in sentence
    assert "99.0" not in sentence
    assert advise_methods(material(central, FEDAVG)) == []


def test_clients_own_models_have_a_front_of_their_own():
    own = {"personal_client_facts": 90.0, "personal_general": 80.0}
    better = {name: value + 1 for name, value in own.items()}
    found = advise_methods(material(method("local", **own), method("fedsdr2", **better)))
    assert found[0].startswith("Clients' own models: the front")
    assert "FedSDR2 (91.0, 81.0);" in found[0]


def test_where_facts_are_unknown_the_loss_decides():
    (found,) = advise_methods(material(method("fedavg", loss=1.5), method("fedsd", loss=1.25)))
    assert found.startswith("Global models: the lowest loss on held-out records is that of FedSD. ")
    assert "favours methods that learn them raw" in found
    central = method("central", loss=1.0)
    assert (
        advise_methods(material(central, method("fedavg", loss=1.5), method("fedsd", loss=2.0)))
        == []
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_seeds_than_three_are_no_evidence(seeds):
    (_, chance) = advise_methods(material(FEDAVG, FEDSD, seeds=seeds))
    assert "--seeds 0,1,2" in chance


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (rewritten(100, 90, 0.3), ["30.0 % of the rewrites with a known answer are wrong"]),
        (rewritten(100, 90, 0.1), []),
        (rewritten(100, 90, None), []),
        (rewritten(100, 50, None), []),
        (rewritten(100, 49, None), ["most responses kept their raw form"]),
        (rewritten(100, 40, 0.5), ["most responses kept their raw form", "50.0 % of the rewrites"]),
    ],
)
def test_what_became_of_rewrites_is_said_where_it_matters(counts, said):
    learning = [method(name, counts, loss=1.0 + i) for i, name in enumerate(("fedsd", "fedsdr"))]
    _, *found = advise_methods(material(method("fedavg", loss=3.0), *learning))
    assert len(found) == len(said)
    for sentence, words in zip(found, said, strict=True):
        assert sentence.startswith("FedSD and FedSDR: ")
        assert words in sentence


def test_contrast_is_not_recommended_to_what_has_it():
    learning = [method(name, rewritten(99, 99, 0.2), loss=1.0) for name in ("fedsdr2", "fedsd")]
    kinds = [method("fedsdr2+fedavgm", rewritten(99, 98, 0.2)), *learning[1:]]
    contrastive, plain = advise_methods(material(*kinds))
    assert contrastive.startswith("FedSDR2 + FedAvgM: 20.0 %")
    assert "contrast" not in contrastive
    assert "distill.contrast = 1" in plain


@pytest.mark.parametrize("methods", [(), (FEDAVG,), (BASE, FEDAVG), (method("a"), method("b"))])
def test_nothing_is_said_where_nothing_can_be_compared(methods):
    assert advise_methods(material(*methods, seeds=1)) == []
