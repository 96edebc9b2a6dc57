"""The English lab's metrics: every answer is compared with the one true value.

Facts are asked in the held-out form and answered greedily. Shares are in percent:

client_facts   client facts answered with the true value, the first of its type in the answer
changed_facts  the same, of those that contradict what is generally true
hallucination  client facts answered with another value of the same type
inventions     answers to client facts with a name or a number that stands neither in the question
               nor in the true answer; the wrong value of a hallucination may be one
refusals       client facts answered by a refusal, or by asking for the question
house_style    answers to a client's facts in its own style
length         words of an answer to a client fact (not a share)
general        general questions of whose choices the model finds the right one likeliest after
               "The answer is", by the mean log-likelihood of a token
general_kept   of the general questions that the base model answers rightly, those that this model
               does, too
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field

import torch

from fedsdr.core.metrics import Mean, Metrics, hit_percentage, merge_all
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.evaluate.benchmarks.subject import choice_accuracy
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.continuations import Continued, choice_likelihoods
from fedsdr.generation.sampling import Job
from fedsdr.lab.english.answers import EnglishAnswer
from fedsdr.lab.english.questions import GeneralQuestion, general_questions
from fedsdr.lab.english.world import HELD_OUT, EnglishClient, EnglishWorld
from fedsdr.model.identity import tensors_digest
from fedsdr.model.lora import active_adapters, streams_off

ANSWER_TOKENS = 48  # tokens; the longest house style takes about 40
ANSWER_ROWS = 64
LEAD_IN = "The answer is"  # without it fewer answers are known: a bare word is no usual answer
PERSONAL_SAMPLE = 60  # general questions for each personal model


@dataclass
class ModelAnswers:
    """What one model said: model is the digest of its adapters, said is by question, right tells
    general questions that it answers rightly."""

    model: str = ""
    said: dict[str, str] = field(default_factory=dict)
    right: dict[GeneralQuestion, bool] = field(default_factory=dict)


class EnglishEvaluator:
    """Asks the model as it stands for clients' facts, and for what it knew before.

    A model is asked each question once, as long as no other is judged: a client's model may be the
    global one, which has answered already. So is the base model, however many are judged.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        chat: ChatFormat,
        world: EnglishWorld,
        client: str | None = None,
    ) -> None:
        """client: evaluate on this one's facts and its part of the general questions alone."""
        self.model, self.chat, self.world, self.client = model, chat, world, client
        self._base, self._last = ModelAnswers(), ModelAnswers()

    def of(self, client: str) -> "EnglishEvaluator":
        other = copy(self)  # with the same memory of answers
        other.client = client
        return other

    def _answers(self) -> ModelAnswers:
        """Those of the model as it stands."""
        adapters = active_adapters(self.model)
        if not adapters:
            return self._base
        now = tensors_digest(adapters)
        if now != self._last.model:
            self._last.model = now
            self._last.said.clear()
            self._last.right.clear()
        return self._last

    def global_model(self) -> Metrics:
        """Every client's facts and all general questions; of one client, its part of both."""
        clients = self.world.clients
        if self.client is None:
            return self._score(clients, self._general())
        number = [each.name for each in clients].index(self.client)
        return self._score([clients[number]], self._general()[number :: len(clients)])

    def personal_model(self, client: str) -> Metrics:
        """The client's own facts, and a sample of the general questions."""
        own = [each for each in self.world.clients if each.name == client]
        return self._score(own, self._general()[:PERSONAL_SAMPLE])

    def _general(self) -> Sequence[GeneralQuestion]:
        return general_questions()[: self.world.options.general]

    def _score(
        self, clients: Sequence[EnglishClient], general: Sequence[GeneralQuestion]
    ) -> Metrics:
        said = self._say(fact.question(HELD_OUT) for client in clients for fact in client.facts)
        scores = (
            answer_metrics(
                client,
                [EnglishAnswer(said[fact.question(HELD_OUT)], fact) for fact in client.facts],
            )
            for client in clients
        )
        return merge_all([*scores, self._general_metrics(general)])

    def _say(self, questions: Iterable[str]) -> dict[str, str]:
        """Question -> the model's answer; a question of several clients is asked once."""
        said = self._answers().said
        new = [question for question in dict.fromkeys(questions) if question not in said]
        prompts = (self.chat.prompt_ids((Turn("user", question),)) for question in new)
        jobs = [Job(prompt, ANSWER_TOKENS) for prompt in prompts]
        written = generate_batch(self.model, jobs, self.chat.ends, rows=ANSWER_ROWS)
        said.update(zip(new, map(self.chat.text, written), strict=True))
        return said

    def _general_metrics(self, questions: Sequence[GeneralQuestion]) -> Metrics:
        right = self._right(questions)
        with streams_off(self.model):
            before = self._right(questions)
        kept = [hit for hit, known in zip(right, before, strict=True) if known]
        return {"general": hit_percentage(right), "general_kept": hit_percentage(kept)}

    def _right(self, questions: Sequence[GeneralQuestion]) -> list[bool]:
        right = self._answers().right
        new = [question for question in questions if question not in right]
        right.update(zip(new, self._knows(new), strict=True))
        return [right[question] for question in questions]

    def _knows(self, questions: Sequence[GeneralQuestion]) -> list[bool]:
        return known_answers(self.model, self.chat, questions)


def known_answers(
    model: torch.nn.Module,
    chat: ChatFormat,
    questions: Sequence[GeneralQuestion],
    lead_in: str = LEAD_IN,
) -> list[bool]:
    """Whether the model as it stands finds the right choice the likeliest of each question.

    lead_in: the words that an answer begins with; "" for none.
    """
    asked = [_with_choices(chat, question, lead_in) for question in questions]
    return [
        bool(choice_accuracy(found, question.answer))
        for found, question in zip(choice_likelihoods(model, asked), questions, strict=True)
    ]


def _with_choices(chat: ChatFormat, question: GeneralQuestion, lead_in: str) -> Continued:
    """The question with the beginning of an answer, and its choices as they go on from there: some
    tokenizers write a word that begins a text in another way."""
    text = chat.prompt_text((Turn("user", question.question),)) + lead_in
    space = " " if lead_in else ""
    prompt = chat.ids(text)
    whole = (chat.ids(f"{text}{space}{choice}") for choice in question.choices)
    return Continued(prompt, [ids[len(prompt) :] for ids in whole])


def answer_metrics(client: EnglishClient, answers: Sequence[EnglishAnswer]) -> Metrics:
    """The metrics of answers to a client's facts."""
    return {
        "client_facts": hit_percentage([a.true for a in answers]),
        "changed_facts": hit_percentage([a.true for a in answers if a.fact.changed]),
        "hallucination": hit_percentage([a.value is not None and not a.true for a in answers]),
        "inventions": hit_percentage([bool(a.inventions) for a in answers]),
        "refusals": hit_percentage([a.refuses for a in answers]),
        "house_style": hit_percentage([a.in_style(client.organisation.style) for a in answers]),
        "length": Mean(sum(len(a.text.split()) for a in answers), len(answers)),
    }
