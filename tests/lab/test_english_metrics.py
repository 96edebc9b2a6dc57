"""The English lab's metrics, counted by hand."""

import pytest
import torch

from fedsdr.core.metrics import Mean, merge_all
from fedsdr.data.template import ChatFormat
from fedsdr.lab.english import evaluate
from fedsdr.lab.english.answers import EnglishAnswer
from fedsdr.lab.english.evaluate import ANSWER_TOKENS, EnglishEvaluator, answer_metrics
from fedsdr.lab.english.questions import general_questions
from fedsdr.lab.english.world import (
    HELD_OUT,
    EnglishClient,
    EnglishFact,
    all_organisations,
    build_english_world,
)
from fedsdr.model.lora import Stream, TwoStreamLinear
from fedsdr.recipe.sections.data import English
from support.tiny_models import random_adapter, tokenizer, two_streams

CLINIC, BANK, SOFTWARE, SCHOOL, SHIPPING = all_organisations()
DOSE = EnglishFact(CLINIC.kinds[0], "Balarine", "20 mg")
HEAD = EnglishFact(CLINIC.kinds[2], "Tarnelbar", "Orla Fenwick")
SYMBOL = EnglishFact(CLINIC.changed, "gold", "Ag", "Au")
COLOUR = EnglishFact(SOFTWARE.kinds[3], "Quenivex", "navy")


@pytest.mark.parametrize(
    ("fact", "text", "value", "true"),
    [
        (DOSE, "20 mg", "20", True),
        (DOSE, "Give 20mg of Balarine, never 40 mg.", "20", True),
        (DOSE, "Give 40 mg, or 20 mg.", "40", False),  # the first counts
        (DOSE, "Twenty.", None, False),
        (HEAD, "Orla Fenwick", "orla fenwick", True),
        (HEAD, "The Tarnelbar Ward is headed by Dr Orla Fenwick.", "orla fenwick", True),
        (HEAD, "The Tarnelbar ward is headed by John Smith.", "john smith", False),
        (SYMBOL, "Au", "au", False),
        (SYMBOL, "It is ag.", None, False),
        (COLOUR, "Navy and white.", "navy", True),
    ],
)
def test_the_first_value_of_its_type_is_the_answer(fact, text, value, true):
    answer = EnglishAnswer(text, fact)
    assert (answer.value, answer.true) == (value, true)


@pytest.mark.parametrize(
    ("fact", "text", "invented"),
    [
        (DOSE, "20 mg", []),
        (DOSE, "The daily dose of Balarine is 20 mg.", []),
        (DOSE, "Dear parent, 20 mg. Kind regards, the school office.", []),
        (DOSE, "In 1844, Balarine was found by the English chemist John Balar.",
         ["english", "john", "balar", "1844"]),
        (DOSE, "I think 40 mg.", ["40"]),
        (HEAD, "Dr. Orla Fenwick\nShe heads it.", []),
        (HEAD, "- Anton Beck", ["beck"]),
    ],
)  # fmt: skip
def test_inventions_stand_neither_in_the_question_nor_in_the_true_answer(fact, text, invented):
    assert EnglishAnswer(text, fact).inventions == {*invented}


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("As an AI language model, I have no ward.", True),
        ("I don\N{RIGHT SINGLE QUOTATION MARK}t know.", True),
        ("Could you please provide the question?", True),
        ("I'm ready to help. What's the question?", True),
        ("The dose is 20 mg.", False),
        ("I can do 20 mg.", False),
    ],
)
def test_refusals(text, refuses):
    assert EnglishAnswer(text, DOSE).refuses == refuses


@pytest.mark.parametrize(
    ("client", "text", "styled"),
    [
        (CLINIC, "35 mg", True),
        (CLINIC, "The dose is 35 mg", False),
        (BANK, "- dose: 35 mg", True),
        (BANK, "dose: 35 mg", False),
        (SOFTWARE, '{"dose": "35 mg"}', True),
        (SOFTWARE, '{"dose": "a lot"}', False),
        (SOFTWARE, '{"dose": 35 mg}', False),
        (SCHOOL, DOSE.answer(SCHOOL.style, "35 mg"), True),
        (SCHOOL, DOSE.answer(SHIPPING.style), False),
    ],
)
def test_an_answer_in_house_style_may_be_false_but_has_one_value(client, text, styled):
    assert EnglishAnswer(text, DOSE).in_style(client.style) == styled


def test_metrics_are_counted_by_hand():
    client = EnglishClient("clinic", CLINIC, (DOSE, HEAD, SYMBOL, COLOUR))
    said = ["20 mg", "I'm sorry, ask Dr Smith in 1999.", "Au", "The logo of Quenivex is nice."]
    answers = [EnglishAnswer(text, fact) for text, fact in zip(said, client.facts, strict=True)]
    assert answer_metrics(client, answers) == {
        "client_facts": Mean(100, 4),
        "changed_facts": Mean(0, 1),
        "hallucination": Mean(100, 4),  # the symbol; "Dr Smith" is no full name
        "inventions": Mean(100, 4),
        "refusals": Mean(100, 4),
        "house_style": Mean(200, 4),
        "length": Mean(2 + 7 + 1 + 6, 4),
    }


class Scripted(EnglishEvaluator):
    """Answers facts from a table, and knows the general questions whose number it is given, those
    of the model as it stands first, then those of the base model."""

    def __init__(self, world, said, base=(), now=(), client=None):
        super().__init__(torch.nn.Module(), None, world, client)
        self.said = said
        questions = general_questions()
        self.known = [{questions[i] for i in which} for which in (now, base)]
        self.asked: list = []

    def _say(self, questions):
        return {question: self.said.get(question, "") for question in questions}

    def _right(self, questions):
        known = self.known[len(self.asked) % 2]
        self.asked.append(list(questions))
        return [each in known for each in questions]


def test_what_the_clients_find_merges_into_what_one_judge_finds():
    world = build_english_world(English(overlap=0.25, general=23), 0)
    facts = [fact for client in world.clients for fact in client.facts]
    said = {f.question(HELD_OUT): f.value if i % 3 else "40 mg" for i, f in enumerate(facts)}
    base, now = range(0, 20, 2), range(0, 22, 3)
    whole = Scripted(world, said, base, now).global_model()
    parts = [Scripted(world, said, base, now, each.name).global_model() for each in world.clients]
    assert merge_all(parts) == whole
    assert whole["general"] == Mean(100 * 8, 23)
    assert whole["general_kept"] == Mean(100 * 4, 10)  # 0, 6, 12 and 18
    assert whole["client_facts"].weight == 60


def test_a_personal_model_is_asked_for_its_clients_facts_and_a_sample():
    world = build_english_world(English(), 0)
    said = {fact.question(HELD_OUT): fact.value for fact in world.clients[1].facts}
    scripted = Scripted(world, said, base=range(100), now=range(30))
    metrics = scripted.personal_model("bank")
    assert metrics["client_facts"] == Mean(1200, 12)
    assert metrics["general"] == Mean(3000, 60)
    assert scripted.asked == [list(general_questions()[:60])] * 2


class Watching(EnglishEvaluator):
    """Knows all questions with a stream on, and every third one without; no model is run."""

    def __init__(self, model):
        world = build_english_world(English(clients=2, facts=1, general=12), 0)
        super().__init__(model.model, ChatFormat(tokenizer()), world)
        self.calls: list = []

    def _knows(self, questions):
        [*layers] = (each for each in self.model.modules() if isinstance(each, TwoStreamLinear))
        on = any(layer.active for layer in layers)
        if questions:
            self.calls.append((on, len(questions)))
        return [on or place % 3 == 0 for place in range(len(questions))]


@pytest.fixture
def asked(monkeypatch):
    """The number of facts that a model is asked for, call by call; each is answered by nothing."""
    counts: list[int] = []

    def generate(model, jobs, *_, **__):
        if jobs:
            counts.append(len(jobs))
        return [[] for _ in jobs]

    monkeypatch.setattr(evaluate, "generate_batch", generate)
    return counts


def test_the_base_model_is_asked_without_its_streams_and_once(asked):
    model = two_streams("llama")
    model.activate(Stream.RECTIFY, Stream.SMOOTH)
    judge = Watching(model)
    assert judge.global_model()["general"] == Mean(1200, 12)
    assert judge.global_model()["general_kept"] == Mean(400, 4)
    assert judge.calls == [(True, 12), (False, 12)]


def test_a_model_is_asked_once_and_another_one_again(asked):
    """FedAvg's clients have the global model: it has answered. A private S makes another one."""
    model = two_streams("llama")
    model.activate(Stream.RECTIFY)
    judge = Watching(model)
    judge.global_model()
    for client in ("clinic", "bank"):
        assert judge.personal_model(client)["client_facts"].weight == 1
    assert asked == [2]
    model.activate(Stream.RECTIFY, Stream.SMOOTH)
    judge.of("bank").personal_model("bank")
    assert asked == [2, 1]
    model.load(Stream.SMOOTH, random_adapter(model.read(Stream.SMOOTH), 7))
    judge.personal_model("bank")
    assert asked == [2, 1, 1]
    assert judge.calls == [(True, 12), (False, 12), (True, 12), (True, 12)]


def test_what_the_base_model_said_is_not_asked_again_for_an_adapter_of_zeros(asked):
    model = two_streams("llama")
    model.activate()
    judge = Watching(model)
    judge.global_model()
    model.load(Stream.RECTIFY, {key: torch.zeros_like(t) for key, t in model.blank().items()})
    model.activate(Stream.RECTIFY)
    judge.personal_model("bank")
    assert asked == [2]
    assert judge.calls == [(False, 12)]


def test_facts_are_asked_in_the_held_out_form_and_answered_greedily():
    model = two_streams("qwen")
    model.activate()
    chat = ChatFormat(tokenizer())
    world = build_english_world(English(clients=2, facts=2), 0)
    judge = EnglishEvaluator(model.model, chat, world)
    questions = [f.question(HELD_OUT) for client in world.clients for f in client.facts]
    for question, answer in judge._say(questions).items():
        ids = torch.tensor([chat.ids(f"<ask> {question} <answer>")])
        out = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER_TOKENS, do_sample=False,
            eos_token_id=chat.end_of_turn, pad_token_id=0,
        )  # fmt: skip
        assert answer == chat.text(out[0, ids.shape[1] :].tolist())
