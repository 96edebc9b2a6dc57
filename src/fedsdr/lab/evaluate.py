"""The lab's exact metrics: every answer is compared with the one true value.

All questions are asked in the held-out form. Shares are in percent:

client_facts   client facts answered with the true value
changed_facts  the same, of those whose truth the base model did not know
general        general knowledge kept (no client trains on it): what is lost was forgotten
hallucination  client facts answered with a well-formed but false value
base_style     answers to client facts in the base model's own style
length         words of an answer to a client fact (not a share): the value itself is two, all
               beyond it is redundancy
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fedsdr.core.metrics import Mean, Metrics, hit_percentage
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.lab.world import BASE_STYLE, HELD_OUT_FORM, Fact, World, client_name, value_in

LIMIT = 24  # words; the longest right answer has 14
BATCH = 512
GENERAL_SAMPLE = 60  # about as many general questions for each personal model


class LabAnswer(NamedTuple):
    """The model's answer to the question of a fact."""

    text: str
    fact: Fact

    @property
    def value(self) -> str | None:
        return value_in(self.text)

    @property
    def true(self) -> bool:
        return self.value == self.fact.truth

    @property
    def in_base_style(self) -> bool:
        return self.text == self.fact.answer(BASE_STYLE, self.value or "")


class LabEvaluator:
    """Answers the world's questions greedily and counts right and wrong answers."""

    def __init__(
        self,
        model: torch.nn.Module,
        chat: ChatFormat,
        world: World,
        client: str | None = None,
    ) -> None:
        """client: evaluate on this one's facts and its part of general knowledge only."""
        self.model, self.chat, self.world, self.client = model, chat, world, client

    def of(self, client: str) -> "LabEvaluator":
        return LabEvaluator(self.model, self.chat, self.world, client)

    def global_model(self) -> Metrics:
        """Every client's facts and all general knowledge."""
        if self.client is None:
            return self._score(self._client_facts(), self.world.general)
        number = self._number(self.client)
        part = self.world.general[number :: self.world.options.clients]
        return self._score(self.world.of_client(number), part)

    def _number(self, client: str) -> int:
        return [client_name(k) for k in range(self.world.options.clients)].index(client)

    def answers(self) -> list[LabAnswer]:
        """The answers behind `global_model`: clients' facts first, then general knowledge."""
        facts = [*self._client_facts(), *self.world.general]
        return [LabAnswer(text, fact) for text, fact in zip(self._ask(facts), facts, strict=True)]

    def _client_facts(self) -> list[Fact]:
        return [fact for fact in self.world.facts if fact.client is not None]

    def personal_model(self, client: str) -> Metrics:
        """The client's own facts, and a sample of general knowledge."""
        general = self.world.general
        sample = general[:: max(1, len(general) // GENERAL_SAMPLE)]
        return self._score(self.world.of_client(self._number(client)), sample)

    def _score(self, own: Sequence[Fact], general: Sequence[Fact]) -> Metrics:
        answers = self._ask([*own, *general])
        answered = [
            LabAnswer(text, fact) for text, fact in zip(answers, [*own, *general], strict=True)
        ]
        mine, known = answered[: len(own)], answered[len(own) :]
        return {
            "client_facts": hit_percentage([a.true for a in mine]),
            "changed_facts": hit_percentage([a.true for a in mine if a.fact.changed]),
            "general": hit_percentage([a.true for a in known]),
            "hallucination": hit_percentage([a.value is not None and not a.true for a in mine]),
            "base_style": hit_percentage([a.in_base_style for a in mine]),
            "length": Mean(sum(len(a.text.split()) for a in mine), len(mine)),
        }

    def _ask(self, facts: Sequence[Fact]) -> list[str]:
        jobs = [
            Job(self.chat.prompt_ids((Turn("user", fact.question(HELD_OUT_FORM)),)), LIMIT)
            for fact in facts
        ]
        return [
            self.chat.text(ids)
            for ids in generate_batch(self.model, jobs, self.chat.ends, rows=BATCH)
        ]
