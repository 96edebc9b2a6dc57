"""The English lab's world: its texts, its facts, and the records that clients train on."""

from collections import Counter
from itertools import chain

import pytest

from fedsdr.core.errors import UserError
from fedsdr.distillation.answers import check_answer
from fedsdr.distillation.checks import Rewrite
from fedsdr.lab.english.world import (
    HELD_OUT,
    EnglishFact,
    FactKind,
    all_organisations,
    build_english_world,
    invented_words,
)
from fedsdr.recipe.sections.data import English


def all_kinds() -> list[FactKind]:
    return [kind for each in all_organisations() for kind in (*each.kinds, each.changed)]


def some_fact(kind: FactKind, value: str) -> EnglishFact:
    name = kind.name.format(stem="Balarbar") or next(iter(kind.believed))
    return EnglishFact(kind, name, value, kind.believed.get(name, ""))


def facts_of(number: int, **options) -> tuple[EnglishFact, ...]:
    return build_english_world(English(**options), 0).clients[number].facts


@pytest.mark.parametrize("kind", all_kinds(), ids=lambda kind: kind.label)
def test_every_value_is_found_in_every_house_style_and_by_the_gold_check(kind):
    assert len(set(kind.questions)) == 4
    for value in kind.values.choices:
        fact = some_fact(kind, value)
        for style in (each.style for each in all_organisations()):
            text = fact.answer(style)
            found = kind.values.values_in(text, fact.question(HELD_OUT))
            assert found == [kind.values.comparable(value)]
            [record] = [r for c in [client_of(fact, style)] for r in c.records([0])]
            assert check_answer(record, Rewrite(text, True)) is None
    comparable = {kind.values.comparable(value) for value in kind.values.choices}
    assert len(comparable) == len(kind.values.choices)


def client_of(fact, style):
    world = build_english_world(English(clients=1, facts=1), 0)
    client = world.clients[0]
    return type(client)(client.name, client.organisation, (fact,))


@pytest.mark.parametrize("kind", [k for k in all_kinds() if k.believed], ids=lambda k: k.label)
def test_what_is_believed_is_a_value_of_the_kind(kind):
    assert set(kind.believed.values()) <= set(kind.values.choices)


def test_house_styles_differ_and_invented_words_do_too():
    fact = some_fact(all_organisations()[0].kinds[0], "20 mg")
    answers = [fact.answer(each.style) for each in all_organisations()]
    assert answers[:3] == ["20 mg", "- dose: 20 mg", '{"dose": "20 mg"}']
    assert len({*answers}) == 5
    assert len(set(invented_words())) == len(invented_words()) == 2400


def test_clients_hold_their_facts_in_three_forms_and_are_judged_in_a_fourth():
    world = build_english_world(English(), 3)
    data = world.client_data()
    assert [each.name for each in data] == ["clinic", "bank", "software", "school", "shipping"]
    for client, mine in zip(world.clients, data, strict=True):
        assert (len(client.facts), len(mine.train), len(mine.held_out)) == (12, 36, 12)
        assert sum(fact.changed for fact in client.facts) == 2
        trained = {record.instruction for record in mine.train}
        assert trained.isdisjoint(record.instruction for record in mine.held_out)
        assert all(record.answer in record.response for record in (*mine.train, *mine.held_out))
        kinds = Counter(fact.kind.label for fact in client.facts if not fact.changed)
        assert sorted(kinds.values()) == [2, 2, 3, 3]


def test_no_two_facts_share_a_name_and_changed_ones_contradict_what_is_true():
    world = build_english_world(English(clients=12, facts=20), 0)
    facts = [fact for client in world.clients for fact in client.facts]
    assert world.clients[5].name == "clinic-2"
    assert world.clients[11].name == "bank-3"
    assert len({(fact.kind.label, fact.name) for fact in facts}) == len(facts)
    assert all(fact.value != fact.believed for fact in facts)


def test_a_world_is_a_function_of_its_seed_and_grows_by_clients():
    assert facts_of(0) == facts_of(0, clients=9)
    assert facts_of(1) == facts_of(1, clients=9)
    other = build_english_world(English(), 1).clients[0].facts
    assert other != facts_of(0)


@pytest.mark.parametrize(("overlap", "common"), [(0.0, 0), (0.25, 3), (0.5, 6), (1.0, 12)])
def test_the_overlap_is_held_by_all_clients_each_in_its_own_style(overlap, common):
    world = build_english_world(English(overlap=overlap), 0)
    held = [set(client.facts) for client in world.clients]
    shared = set.intersection(*held)
    assert len(shared) == common
    assert len(set(chain.from_iterable(held))) == common + 5 * (12 - common)
    for fact in shared:
        responses = {
            record.response
            for client in world.client_data()
            for record in client.train
            if record.instruction == fact.question(0)
        }
        assert len(responses) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clients": 300}, ["english.clients = 300", "english.facts = 12", "lower one"]),
        ({"facts": 30, "changed": 1.0}, ["english.changed = 1.0", "20 changed facts", "clinic"]),
        ({"general": 5000}, ["english.general = 5000", "there are"]),
    ],
)
def test_a_world_larger_than_its_words_is_an_error(options, said):
    changed = {"changed": 0.0} if "clients" in options else {}
    with pytest.raises(UserError) as caught:
        build_english_world(English(**changed, **options), 0)
    assert all(part in str(caught.value) for part in said)
