"""A run whose model is loaded: what all its methods share in this process.

One base model serves all clients and all methods; only adapters change hands. Records are
tokenised once.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from fedsdr.algorithms.contract import Personal
from fedsdr.core.adapters import Adapter, factor_of
from fedsdr.core.metrics import Metrics
from fedsdr.data.encoding import Encoded
from fedsdr.data.example import Example
from fedsdr.data.records import ClientData, Record
from fedsdr.data.template import nothing_fits
from fedsdr.distillation.reference import with_reference
from fedsdr.distillation.teacher import rewriting_job
from fedsdr.evaluate.loss import LossEvaluator
from fedsdr.generation.batched import GenerationMode, generation_mode
from fedsdr.model.base import LoadedModel
from fedsdr.model.checkpointing import check_checkpointing
from fedsdr.model.identity import identity_text
from fedsdr.model.install import install_model
from fedsdr.model.lora import TwoStreamModel
from fedsdr.model.peft_format import AdapterSettings, settings_of
from fedsdr.model.trials import pads_rightly, passes_trial
from fedsdr.recipe.sections.distill import Distill
from fedsdr.recipe.sections.recipe import Recipe
from fedsdr.training.trial import check_learns


class Evaluator(Protocol):
    """Judges the model as it stands: the adapters in it are the caller's business."""

    def global_model(self) -> Metrics: ...

    def personal_model(self, client: str) -> Metrics: ...

    def of(self, client: str) -> "Evaluator":
        """The judge by what one client knows: all clients' scores merge into the whole's."""
        ...


class Benchmarks(Protocol):
    """Puts public benchmarks to the model as it stands, called `model` in progress bars."""

    def scores(self, model: str) -> Metrics: ...

    def identities(self) -> Mapping[str, str]:
        """Benchmark -> digest of all that its scores depend on, apart from the model."""
        ...


class LoadedRun:
    """The base model with its two streams, the clients' tokenised records, and the evaluators.

    base: the model alone, with its tokenizer and template. model: the same one with its streams,
    which `fedsdr.model.install` fills. clients: their records. raw: client -> examples of its raw
    responses. evaluator: judges the model as it stands. benchmarks: None where none are asked for.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: LoadedModel,
        clients: Sequence[ClientData],
        encoded: Mapping[str, Encoded],
        evaluator: Callable[[LoadedModel], Evaluator] | None = None,
        benchmarks: Benchmarks | None = None,
        prompts: Sequence[str] = (),
    ) -> None:
        """recipe: of which model, lora and data are common to all methods. encoded: client -> its
        examples. evaluator: builds another one than held-out loss (the lab's). prompts: public
        ones for rehearsal, where a model cannot sample any."""
        self.base, self.clients, self.benchmarks = base, list(clients), benchmarks
        self.prompts = prompts
        self._of_base: dict[str, Metrics] = {}
        if recipe.model.gradient_checkpointing:
            check_checkpointing(base.model)
        self.max_length = min(recipe.model.max_length, base.context)
        self.identity, self.description = base.identity, base.description
        lora = recipe.lora
        self.model = TwoStreamModel(base.model, lora.targets, lora.rank, lora.alpha, lora.layers)
        check_learns(self.model, recipe.model.gradient_checkpointing)
        self.dropout = lora.dropout
        if self.dropout:
            self.model.check_dropout(self.dropout)
        self.raw = {client.name: list(encoded[client.name].train) for client in clients}
        self.evaluator = evaluator(base) if evaluator else self._loss_evaluator(recipe, encoded)

    @property
    def adapter_settings(self) -> AdapterSettings:
        """What PEFT must know to apply this run's adapters."""
        return settings_of(self.model, self.base.path, self.dropout)

    @property
    def fingerprint(self) -> str:
        """The base model's identity as a client of a federation says it."""
        return identity_text(self.identity)

    def of(self, client: str) -> "LoadedRun":
        """The same model with the records of one client alone."""
        part = copy.copy(self)
        part.clients = [each for each in self.clients if each.name == client]
        part.raw = {client: self.raw[client]}
        part.evaluator = self.evaluator.of(client)
        part._of_base = {}
        return part

    def tokenise(
        self,
        client: str,
        records: Sequence[Record],
        responses: Sequence[str] | None = None,
        teacher: Distill | None = None,
        refused: Collection[int] = (),
    ) -> list[Example]:
        """Examples of the raw responses or of those given; too long prompts are left out.

        teacher: how a teacher is asked, for examples with references. refused: positions of
        records that get none.
        """
        chat, responses = self.base.chat, responses or [r.response for r in records]
        examples = []
        for i, (record, response) in enumerate(zip(records, responses, strict=True)):
            example = chat.encode(record, response, self.max_length)
            if example is not None and teacher is not None and i not in refused:
                job = rewriting_job(chat, record, teacher, 0, 0)
                example = with_reference(example, record, job, self.base.context, self.max_length)
            if example is not None:
                examples.append(example)
        if records and not examples:
            raise nothing_fits(client, self.max_length)
        return examples

    def _loss_evaluator(self, recipe: Recipe, encoded: Mapping[str, Encoded]) -> LossEvaluator:
        held_out = {client.name: encoded[client.name].held_out for client in self.clients}
        return LossEvaluator(self.base.model, held_out, recipe.local.batch_size, self.base.pad)

    def judge(self, deployed: Adapter) -> Metrics:
        """The evaluator's metrics of a global model."""
        return self._measured("metrics", deployed, self.evaluator.global_model)

    def benchmark(self, deployed: Adapter, name: str) -> Metrics:
        """The benchmarks' scores of a global model; name: of its method, for progress."""
        assert self.benchmarks is not None
        shown = name if _differs_from_base(deployed) else "base"
        return self._measured("benchmarks", deployed, partial(self.benchmarks.scores, shown))

    def _measured(self, kind: str, deployed: Adapter, measure: Callable[[], Metrics]) -> Metrics:
        """Every method's first global model is the base model, which is measured once."""
        install_model(self.model, Personal(deployed))
        if _differs_from_base(deployed):
            return measure()
        if kind not in self._of_base:
            self._of_base[kind] = measure()
        return self._of_base[kind]


def _differs_from_base(deployed: Adapter) -> bool:
    return any(bool(tensor.any()) for key, tensor in deployed.items() if factor_of(key) != "A")


def slow_ways(model: Any) -> list[str]:
    """What is slower with a model of this architecture than with others, a sentence each."""
    notes = []
    if not passes_trial(model, pads_rightly):
        notes.append("texts are trained on one at a time: this architecture does not hide padding")
    if (chosen := generation_mode(model)) in (GenerationMode.SINGLE, GenerationMode.UNCACHED):
        notes.append(f"texts are written {chosen}: a faster way is not right for this architecture")
    return notes
