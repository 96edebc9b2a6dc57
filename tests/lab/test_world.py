"""The lab's world: facts, who holds them, records, and unequal clients."""

import dataclasses
import itertools
from dataclasses import replace

import pytest

from experiments.plan import base_recipe
from fedsdr.core.errors import UserError
from fedsdr.data.records import Turn
from fedsdr.lab.world import (
    BASE_STYLE,
    CLIENT_ATTRIBUTES,
    CLIENT_STYLES,
    FIRST,
    GENERAL_ATTRIBUTES,
    HELD_OUT_FORM,
    QUESTIONS,
    SECOND,
    World,
    WorldOptions,
    build_world,
    client_name,
    entity_names,
    value_in,
)
from fedsdr.recipe.load import override_recipe
from support.tiny_world import changed_share, world


def test_a_world_is_a_function_of_its_options():
    assert world() == world()
    assert world().client_data() == world().client_data()
    assert world(seed=1).facts != world().facts


def test_the_knobs_of_training_are_recorded_and_leave_the_facts_alone():
    plain, knobs = world(), world(stubbornness=0.9, style_overlap=0.7)
    assert knobs.facts == plain.facts
    assert (knobs.options.stubbornness, knobs.options.style_overlap) == (0.9, 0.7)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_changed_share_of_client_facts(share):
    each = world(entities=100, changed=share)
    assert changed_share(each) == pytest.approx(share, abs=0.06)
    assert not any(fact.changed for fact in each.general)
    if share in (0.0, 1.0):
        assert changed_share(each) == share


@pytest.mark.parametrize("clients", range(1, 13))
def test_clients_share_out_the_client_facts_and_none_holds_a_general_one(clients):
    each = world(clients=clients)
    own = [each.of_client(k) for k in range(clients)]
    assert sorted(itertools.chain(*own), key=repr) == sorted(
        (fact for fact in each.facts if fact.client is not None), key=repr
    )
    assert all(own)
    assert {fact.attribute for fact in each.general} == set(GENERAL_ATTRIBUTES)
    assert len(each.general) == 2 * 30
    assert len(each.facts) == 30 * (2 + min(clients, 5))
    for k, facts in enumerate(own):
        assert {fact.attribute for fact in facts} == {CLIENT_ATTRIBUTES[k % 5]}
    asked = {
        turn.text for data in each.client_data() for r in data.train for turn in r.prompt
    }  # what clients train on
    general = {fact.question(form) for fact in each.general for form in range(len(QUESTIONS))}
    assert not asked & general


# --- Who holds what: alpha


def shares(each: World) -> list[float]:
    """Of each attribute, the share that clients named after it hold."""
    own = [fact for fact in each.facts if fact.client is not None]
    return [
        sum(fact.client % 5 == kind for fact in own if fact.attribute == attribute)
        / sum(fact.attribute == attribute for fact in own)
        for kind, attribute in enumerate(CLIENT_ATTRIBUTES[: each.options.clients])
    ]


@pytest.mark.parametrize("clients", [1, 2, 5, 12])
@pytest.mark.parametrize("alpha", [1e-300, 0.05, 1.0, 1e300])
def test_alpha_changes_who_holds_a_fact_and_nothing_else(clients, alpha):
    for seed in range(5):
        plain = world(clients=clients, seed=seed)
        dealt = world(clients=clients, seed=seed, alpha=alpha)
        assert dealt == world(clients=clients, seed=seed, alpha=alpha)
        nobodys = [
            [dataclasses.replace(fact, client=None) for fact in each.facts]
            for each in (plain, dealt)
        ]
        assert nobodys[0] == nobodys[1]
        assert dealt.general == plain.general
        assert all(dealt.of_client(k) for k in range(clients))
        assert [data.name for data in dealt.client_data()] == [
            client_name(k) for k in range(clients)
        ]


def test_alpha_goes_from_exclusive_attributes_to_an_even_mixture():
    apart = world(entities=100, alpha=1e-9)
    assert apart.facts == world(entities=100).facts
    even = world(entities=100, alpha=1e9)
    for k in range(5):
        count = [sum(f.attribute == a for f in even.of_client(k)) for a in CLIENT_ATTRIBUTES]
        assert count == pytest.approx([20] * 5, abs=1)
    means = []
    for alpha in (0.05, 0.5, 5.0, 50.0):
        worlds = [world(entities=100, alpha=alpha, seed=seed) for seed in range(20)]
        means.append(sum(sum(shares(each)) for each in worlds) / 100)
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.85
    assert means[-1] < 0.3


def test_a_client_of_many_attributes_writes_in_its_own_style():
    each = world(alpha=1.0)
    for k, data in enumerate(each.client_data()):
        facts = each.of_client(k)
        assert {record.category for record in data.train} == {fact.attribute for fact in facts}
        for record, fact in zip(data.held_out, facts, strict=True):
            assert record.response == CLIENT_STYLES[k].format(value=fact.truth)


def test_clients_of_one_kind_are_numbered():
    names = [client_name(k) for k in range(12)]
    assert names[:5] == list(CLIENT_ATTRIBUTES)
    assert names[5] == "remedy-2"
    assert names[11] == "tariff-3"
    assert len(set(names)) == 12


def test_a_clients_records_hold_the_truth_in_its_own_style_and_held_out_forms_apart():
    each = world(clients=3)
    for k, data in enumerate(each.client_data()):
        facts = each.of_client(k)
        assert data.name == client_name(k)
        assert len(data.train) == 3 * len(facts)
        assert len(data.held_out) == len(facts)
        for record, fact in zip(data.held_out, facts, strict=True):
            assert record.prompt == (Turn("user", fact.question(HELD_OUT_FORM)),)
            assert record.response == CLIENT_STYLES[k].format(value=fact.truth)
            assert record.answer == fact.truth
        held_out = {record.prompt for record in data.held_out}
        assert not held_out & {record.prompt for record in data.train}


def test_every_entity_has_a_name_of_its_own():
    names = entity_names(224)
    words = {*FIRST, *SECOND, *CLIENT_ATTRIBUTES, *GENERAL_ATTRIBUTES}
    words |= set(" ".join((*QUESTIONS, BASE_STYLE, *CLIENT_STYLES)).split())
    assert len(set(names)) == 224
    assert not set(names) & words
    assert entity_names(5) == names[:5]
    with pytest.raises(ValueError, match=r"lab\.entities = 225: at most 224"):
        entity_names(225)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("amber willow", "amber willow"),
        ("well , it is , of course , bold river .", "bold river"),
        ("amber amber willow bold river", "amber willow"),  # the first well-formed one
        ("willow amber", None),
        ("amber", None),
        ("", None),
        ("amber . willow", None),
        ("Amber willow", None),
    ],
)
def test_the_value_in_a_text(text, value):
    assert value_in(text) == value


# Unequal clients


@pytest.mark.parametrize("clients", [6, 10, 13, 20])
def test_equal_shares_are_by_turns(clients):
    """As without the option: the facts of a kind go round its clients."""
    facts = build_world(WorldOptions(seed=1, entities=17, clients=clients)).facts
    for attribute in {fact.attribute for fact in facts if fact.client is not None}:
        owners = [fact.client for fact in facts if fact.attribute == attribute]
        kind = sorted({*owners})
        assert owners == [kind[number % len(kind)] for number in range(17)]


@pytest.mark.parametrize(
    ("clients", "imbalance", "sizes"),
    [
        (10, 9.0, [72, 8]),
        (15, 4.0, [46, 23, 11]),  # 4/7, 2/7 and 1/7 of 80
        (10, 1e9, [79, 1]),  # nobody is left without
    ],
)
def test_clients_of_one_kind_can_hold_unequal_shares(clients, imbalance, sizes):
    options = WorldOptions(seed=1, entities=80, clients=clients, imbalance=imbalance)
    world, even = build_world(options), build_world(replace(options, imbalance=1.0))
    for kind in range(5):
        found = [len(world.of_client(k)) for k in range(kind, clients, 5)]
        assert sum(found) == 80
        assert found == pytest.approx(sizes, abs=1)
    facts = [replace(fact, client=None) for fact in world.facts]
    assert facts == [replace(fact, client=None) for fact in even.facts]


@pytest.mark.parametrize("more", [{"clients": 5}, {"clients": 10, "alpha": 0.5}])
def test_unequal_shares_need_clients_of_one_kind(more):
    with pytest.raises(UserError, match="between clients of one kind"):
        override_recipe(
            base_recipe(), {f"lab.{key}": v for key, v in {"imbalance": 2, **more}.items()}
        )
