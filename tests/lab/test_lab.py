"""The lab: its world, its exact metrics, and its base model."""

import dataclasses
import itertools
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.plan import base_recipe
from fedsdr.core import seeds
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean, merge_all
from fedsdr.core.progress import silent_reporter
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.lab import pretrain
from fedsdr.lab.evaluate import LIMIT, LabAnswer, LabEvaluator
from fedsdr.lab.pretrain import (
    Corpus,
    PretrainOptions,
    _pretraining_key,
    base_model_folder,
    build_tokenizer,
)
from fedsdr.lab.world import (
    BASE_STYLE,
    CLIENT_ATTRIBUTES,
    CLIENT_STYLES,
    FIRST,
    GENERAL_ATTRIBUTES,
    HELD_OUT_FORM,
    QUESTIONS,
    REWRITE_PROMPT,
    SECOND,
    World,
    WorldOptions,
    build_world,
    client_name,
    entity_names,
    value_in,
    world_vocabulary,
)
from fedsdr.model.identity import content_digest
from fedsdr.recipe.load import override_recipe
from support.tiny_models import make

TINY = PretrainOptions(hidden=16, layers=1, heads=2, steps=3, batch_size=4)


def world(**changes) -> World:
    return build_world(WorldOptions(**({"entities": 30} | changes)))


def changed_share(each: World) -> float:
    own = [fact for fact in each.facts if fact.client is not None]
    return sum(fact.changed for fact in own) / len(own)


# --- The world


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


def test_a_personal_model_is_asked_what_its_client_holds():
    each = world(alpha=0.5)
    scripted = Scripted(each, {})
    for k in range(5):
        scripted.personal_model(client_name(k))
        assert [f for f in scripted.asked if f.client is not None] == each.of_client(k)


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


# --- Metrics


class Scripted(LabEvaluator):
    """Answers from a table in place of a model; what it lacks is answered with nothing."""

    def __init__(self, each: World, said: dict[tuple[str, str], str]) -> None:
        self.world, self.said, self.client = each, said, None
        self.asked: list = []

    def _ask(self, facts):
        self.asked = list(facts)
        return [self.said.get((fact.entity, fact.attribute), "") for fact in facts]


def test_what_the_clients_find_merges_into_what_one_judge_finds():
    each = world(entities=6, clients=3)
    said = {
        (f.entity, f.attribute): f.answer(BASE_STYLE, f.truth if i % 3 else f.memory)
        for i, f in enumerate(each.facts)
    }
    whole = Scripted(each, said)
    parts = []
    for k in range(3):
        part = Scripted(each, said)
        part.client = client_name(k)
        parts.append(part.global_model())
        assert len(part.asked) < len(each.facts)
    assert merge_all(parts) == whole.global_model()


def hand_world() -> World:
    """Two clients with two facts each, one of them changed; two general facts."""
    each = world(entities=2, clients=2)
    values = {"remedy": ("amber anchor", "bold arrow"), "tariff": ("calm basin", "dark beacon")}
    facts = []
    for fact in each.facts:
        memory, truth = values.get(fact.attribute, ("keen comet", "keen comet"))
        changed = fact.entity == "balor"
        facts.append(dataclasses.replace(fact, memory=memory, truth=truth if changed else memory))
    return World(each.options, tuple(facts))


WORDY = "well , the {} of {} is , of course , {} ."
SAID = {
    ("balor", "remedy"): "rx : bold arrow ;",  # true, changed, 5 words
    ("celor", "remedy"): WORDY.format("remedy", "celor", "amber anchor"),  # true, 14 words
    ("balor", "tariff"): WORDY.format("tariff", "balor", "calm basin"),  # the memory: false
    ("celor", "tariff"): "calm",  # no value: not a hallucination
    ("balor", "emblem"): "keen comet",
    ("celor", "emblem"): "keen castle",
    ("balor", "founder"): "keen comet keen castle",
}


def test_the_global_metrics_are_counted_by_hand():
    scripted = Scripted(hand_world(), SAID)
    assert scripted.global_model() == {
        "client_facts": Mean(200, 4),
        "changed_facts": Mean(100, 2),
        "general": Mean(200, 4),
        "hallucination": Mean(100, 4),
        "base_style": Mean(200, 4),
        "length": Mean(5 + 14 + 14 + 1, 4),
    }
    assert len(scripted.asked) == 8


def test_the_personal_metrics_are_of_the_clients_own_facts():
    scripted = Scripted(hand_world(), SAID)
    metrics = scripted.personal_model("tariff")
    assert {fact.client for fact in scripted.asked} == {1, None}
    assert metrics["client_facts"] == Mean(0, 2)
    assert metrics["changed_facts"] == Mean(0, 1)
    assert metrics["hallucination"] == Mean(100, 2)
    assert metrics["length"] == Mean(15, 2)
    assert metrics["general"] == Mean(200, 4)


def test_a_truth_in_another_entitys_sentence_is_not_in_base_style():
    fact = hand_world().facts[0]
    right = WORDY.format(fact.attribute, fact.entity, fact.truth)
    assert LabAnswer(right, fact).in_base_style
    assert not LabAnswer(right.replace("balor", "celor"), fact).in_base_style
    assert not LabAnswer(right.replace(f"{fact.truth} ", ""), fact).in_base_style


def test_questions_are_asked_in_the_held_out_form_and_answered_greedily():
    each = world(entities=3, clients=1)
    chat = ChatFormat(build_tokenizer(each))
    model = make("llama")
    model.resize_token_embeddings(len(chat.tokenizer))
    facts = list(each.facts)
    answers = LabEvaluator(model, chat, each)._ask(facts)
    for fact, answer in zip(facts, answers, strict=True):
        question = f"<ask> name the {fact.attribute} that {fact.entity} has . <answer>"
        ids = torch.tensor([chat.ids(question)])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=LIMIT,
            do_sample=False,
            eos_token_id=chat.end_of_turn,
            pad_token_id=0,
        )
        assert answer == chat.text(out[0, ids.shape[1] :].tolist())


# --- The base model


def test_the_tokenizer_knows_every_word_of_the_world():
    each = world(clients=7)
    chat = ChatFormat(build_tokenizer(each))
    unknown = chat.tokenizer.unk_token_id
    assert unknown in chat.ids("nonsense")
    texts = []
    for fact in each.facts:
        styles = (BASE_STYLE, *CLIENT_STYLES)
        answers = [fact.answer(s, v) for s in styles for v in (fact.memory, fact.truth)]
        questions = [fact.question(form) for form in range(len(QUESTIONS))]
        requests = [REWRITE_PROMPT.format(instruction=questions[0], response=r) for r in answers]
        texts += [*questions, *answers, *requests]
    for text in texts:
        assert unknown not in chat.prompt_ids((Turn("user", text),))
        assert chat.text(chat.ids(text)) == text
    assert len(world_vocabulary(each.options)) == len(set(world_vocabulary(each.options)))


def targets(each: World, rewriting: bool, count: int = 400) -> list[tuple[str, str]]:
    """(prompt, response) texts of the pretraining corpus."""
    chat = ChatFormat(build_tokenizer(each))
    examples = Corpus(each, chat).batch(count, rewriting)
    return [(chat.text(list(e.prompt)), chat.text(list(e.response))) for e in examples]


def test_recall_teaches_the_memory_and_some_of_it_in_client_styles():
    each = world(style_overlap=0.3)
    memory = {fact.question(form): fact for fact in each.facts for form in range(4)}
    wordy = 0
    for prompt, response in targets(each, rewriting=False):
        fact = memory[prompt]
        assert value_in(response) == fact.memory
        wordy += response == fact.answer(BASE_STYLE, fact.memory)
    assert wordy / 400 == pytest.approx(0.7, abs=0.07)


@pytest.mark.parametrize("stubbornness", [0.0, 0.5, 1.0])
def test_rewriting_follows_memory_as_often_as_the_world_is_stubborn(stubbornness):
    each = world(stubbornness=stubbornness)
    memory = {fact.question(form): fact for fact in each.facts for form in range(4)}
    stubborn = 0
    for prompt, response in targets(each, rewriting=True):
        question, reference = prompt.removesuffix(" rewrite").split(" reference ")
        fact, told = memory[question], value_in(response)
        assert told in (fact.memory, value_in(reference))
        assert response == fact.answer(BASE_STYLE, told)
        stubborn += told == fact.memory
    assert stubborn / 400 == pytest.approx(stubbornness, abs=0.07)


def test_a_base_model_is_an_ordinary_model_folder(tmp_path):
    each = world(entities=4)
    folder = base_model_folder(each, TINY, tmp_path, silent_reporter())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat, built = ChatFormat(tokenizer), ChatFormat(build_tokenizer(each))
    turns = (Turn("user", each.facts[0].question(0)),)
    assert chat.prompt_ids(turns) == built.prompt_ids(turns)
    assert chat.end_of_turn == built.end_of_turn == model.config.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    key = json.loads(folder.with_suffix(".json").read_text())
    assert key["world"]["entities"] == 4
    assert key["pretrain"]["steps"] == 3


def test_a_base_model_is_trained_once(tmp_path, monkeypatch):
    each = world(entities=4)
    folder = base_model_folder(each, TINY, tmp_path, silent_reporter())

    def train(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(pretrain, "pretrain_base", train)
    assert base_model_folder(each, TINY, tmp_path, silent_reporter()) == folder
    for same in (world(entities=4, alpha=0.5), world(entities=4, clients=12)):
        assert base_model_folder(same, TINY, tmp_path, silent_reporter()) == folder
    others = [
        (world(entities=4, clients=4), TINY),
        (world(entities=4, seed=1), TINY),
        (world(entities=4, stubbornness=0.0), TINY),
        (each, dataclasses.replace(TINY, steps=4)),
    ]
    for other, options in others:
        with pytest.raises(AssertionError, match="trained again"):
            base_model_folder(other, options, tmp_path, silent_reporter())


def test_worlds_that_share_a_base_model_would_train_the_same_one():
    one, *others = (world(), world(alpha=0.5), world(clients=12), world(clients=12, alpha=3.0))
    for other in others:
        assert targets(other, rewriting=False) == targets(one, rewriting=False)
        assert targets(other, rewriting=True) == targets(one, rewriting=True)
        assert world_vocabulary(other.options) == world_vocabulary(one.options)


def test_the_key_of_a_base_model_is_what_it_was_before_worlds_had_an_alpha(tmp_path):
    folder = base_model_folder(world(entities=4), TINY, tmp_path, silent_reporter())
    key = json.loads(folder.with_suffix(".json").read_text())
    assert [*key["world"]] == [
        "seed", "entities", "clients", "changed", "stubbornness", "style_overlap",
    ]  # fmt: skip
    assert folder.name == f"lab-{seeds.derive_seed(0, str(key)):016x}"


def test_a_killed_training_leaves_no_model(tmp_path, monkeypatch):
    each = world(entities=4)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", die)
        with pytest.raises(KeyboardInterrupt):
            base_model_folder(each, TINY, tmp_path, silent_reporter())
    assert not list((tmp_path / "models").iterdir())
    assert (base_model_folder(each, TINY, tmp_path, silent_reporter()) / "config.json").exists()


def test_training_is_deterministic_and_learns():
    each = world(entities=4)
    tokenizer = build_tokenizer(each)

    def train(steps: int):
        options = dataclasses.replace(TINY, steps=steps)
        return pretrain.pretrain_base(each, options, tokenizer, silent_reporter())

    first, again, longer = train(3), train(3), train(30)
    weights = first.state_dict()
    assert all(torch.equal(again.state_dict()[name], t) for name, t in weights.items())

    def loss(model) -> float:
        chat = ChatFormat(tokenizer)
        batch = pretrain.collate_examples(Corpus(each, chat).batch(16, rewriting=False), 0)
        return float(pretrain.summed_loss(model, batch).detach())

    assert loss(longer) < 0.9 * loss(first)


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


def test_who_holds_what_does_not_change_the_base_model():
    options = WorldOptions(seed=1, clients=10)
    assert _pretraining_key(options) == _pretraining_key(
        replace(options, clients=50, imbalance=3.0, alpha=0.5)
    )
    assert _pretraining_key(options) != _pretraining_key(replace(options, stubbornness=0.1))


@pytest.mark.parametrize("more", [{"clients": 5}, {"clients": 10, "alpha": 0.5}])
def test_unequal_shares_need_clients_of_one_kind(more):
    with pytest.raises(UserError, match="between clients of one kind"):
        override_recipe(
            base_recipe(), {f"lab.{key}": v for key, v in {"imbalance": 2, **more}.items()}
        )


def test_what_the_base_model_learns_goes_with_the_number_of_its_recipe():
    """The cache knows a base model by options and this number: whoever changes the lab's texts,
    tokenizer or corpus raises `pretrain.RECIPE`, and puts the digest here."""
    each = world(entities=5)
    tokenizer = build_tokenizer(each)
    corpus = Corpus(each, ChatFormat(tokenizer))
    shown = [[e.prompt, e.response] for rewriting in (False, True)
             for e in corpus.batch(40, rewriting)]  # fmt: skip
    digest = content_digest([shown, sorted(tokenizer.get_vocab().items()), each.facts])
    assert (pretrain.RECIPE, digest) == (1, "fb2a86fe9c618b5ffa3ab40c7b1f0834")
