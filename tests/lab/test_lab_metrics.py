"""The lab's exact metrics, counted by hand."""

import dataclasses

import torch

from fedsdr.core.metrics import Mean, merge_all
from fedsdr.data.template import ChatFormat
from fedsdr.lab.evaluate import LIMIT, LabAnswer, LabEvaluator
from fedsdr.lab.pretrain import (
    build_tokenizer,
)
from fedsdr.lab.world import (
    BASE_STYLE,
    World,
    client_name,
)
from support.tiny_models import make
from support.tiny_world import world


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


def test_a_personal_model_is_asked_what_its_client_holds():
    each = world(alpha=0.5)
    scripted = Scripted(each, {})
    for k in range(5):
        scripted.personal_model(client_name(k))
        assert [f for f in scripted.asked if f.client is not None] == each.of_client(k)
