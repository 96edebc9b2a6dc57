"""What the methods of one run share in this process: model, clients, tokens, rewrites.

One base model serves all clients and all methods; only adapters change hands. Records are
tokenised once.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fedsdr.algorithms.contract import Personal
from fedsdr.core import seeds
from fedsdr.core.adapters import (
    FOLDED,
    Adapter,
    factor_of,
    fresh_adapter,
    plain_factors,
    strip_prefix,
    unwrap_private,
)
from fedsdr.core.metrics import Metrics
from fedsdr.core.progress import Reporter
from fedsdr.data.encoding import Encoded
from fedsdr.data.records import ClientData, Record
from fedsdr.data.template import Example, nothing_fits
from fedsdr.distillation.cache import RewriteCache
from fedsdr.distillation.rewrite import Rewritten, Teacher, rewrite_records
from fedsdr.distillation.verify import build_verifier
from fedsdr.evaluate.loss import LossEvaluator
from fedsdr.generation.batched import GenerationMode, generation_mode
from fedsdr.model.base import LoadedModel
from fedsdr.model.checkpointing import check_checkpointing
from fedsdr.model.identity import identity_digest, identity_text
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.peft_format import AdapterSettings, settings_of
from fedsdr.model.trials import pads_rightly, passes_trial
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


class Workbench:
    """Everything heavy, made once from a recipe's model, lora and data."""

    def __init__(
        self,
        recipe: Recipe,
        base: LoadedModel,
        clients: Sequence[ClientData],
        encoded: Mapping[str, Encoded],
        evaluator: Callable[[LoadedModel], Evaluator] | None = None,
        benchmarks: Benchmarks | None = None,
    ) -> None:
        """encoded: each client's raw records. `evaluator` builds another judge than held-out loss
        (the lab's)."""
        self.base, self.clients, self.benchmarks = base, list(clients), benchmarks
        self._base_scores: Metrics | None = None
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
        """What PEFT must know to apply this workbench's adapters."""
        return settings_of(self.model, self.base.path, self.dropout)

    @property
    def fingerprint(self) -> str:
        """The base model's identity as a client of a federation says it."""
        return identity_text(self.identity)

    def of(self, client: str) -> "Workbench":
        """This workbench with one client's records alone; the model is the same one."""
        part = copy.copy(self)
        part.clients = [each for each in self.clients if each.name == client]
        part.raw = {client: self.raw[client]}
        part.evaluator = self.evaluator.of(client)
        return part

    def tokenise(
        self, client: str, records: Sequence[Record], responses: Sequence[str] | None = None
    ) -> list[Example]:
        """Examples of the raw responses or of those given; too long prompts are left out."""
        responses = [r.response for r in records] if responses is None else responses
        encoded = [
            self.base.chat.encode(record, response, self.max_length)
            for record, response in zip(records, responses, strict=True)
        ]
        examples = [example for example in encoded if example is not None]
        if records and not examples:
            raise nothing_fits(client, self.max_length)
        return examples

    def _loss_evaluator(self, recipe: Recipe, encoded: Mapping[str, Encoded]) -> LossEvaluator:
        held_out = {client.name: encoded[client.name].held_out for client in self.clients}
        return LossEvaluator(self.base.model, held_out, recipe.local.batch_size, self.base.pad)

    def first_adapter(self, seed: int) -> Adapter:
        """R^0: A random, B zero, so that W0 + R^0 is the base model."""
        return fresh_adapter(self.model.blank(), seeds.seeded_generator(seed, "first adapter"))

    def use(self, personal: Personal) -> None:
        """Put a model's adapters in place: global (private None), personal, or the base.

        What a client that never took part has not of its own is zero, as it is in a fresh R.
        """
        r = rectification_adapter(personal)
        streams = {
            Stream.RECTIFY: {**self.model.blank(), **r} if r else {},
            Stream.SMOOTH: unwrap_private(personal.private),
            Stream.FOLDED: strip_prefix(personal.shared or {}, FOLDED),
        }
        active = [stream for stream, adapter in streams.items() if adapter]
        for stream in active:
            self.model.load(stream, streams[stream])
        self.model.activate(*active)

    def teacher(self) -> Teacher:
        """The model that rewrites: the base model, every stream off."""
        self.use(Personal(None))
        identity = identity_digest(self.identity)
        return Teacher(self.base.model, self.base.chat, identity, self.base.context)

    def benchmark(self, deployed: Adapter, name: str) -> Metrics:
        """The benchmarks' scores of a global model; every method's first one is the base model,
        which is asked once."""
        assert self.benchmarks is not None
        self.use(Personal(deployed))
        if any(bool(tensor.any()) for key, tensor in deployed.items() if factor_of(key) != "A"):
            return self.benchmarks.scores(name)
        if self._base_scores is None:
            self._base_scores = self.benchmarks.scores("base")
        return self._base_scores

    def rewrite(
        self,
        recipe: Recipe,
        cache: RewriteCache,
        reporter: Reporter,
        sample: Mapping[str, Sequence[Record]] | None = None,
    ) -> Mapping[str, list[Rewritten]]:
        """Every client's rewrites by the base model, from the cache where they are in it.

        sample: the records of each client to be rewritten, where not all are.
        """
        teacher, options, seed = self.teacher(), recipe.distill, recipe.seed
        verifier = build_verifier(options, seed, recipe.model.device)
        rewrites = {}
        for client in self.clients:
            records = client.train if sample is None else sample[client.name]
            gate = verifier.gate(client.train)
            with reporter.bar(f"rewriting: {client.name}", len(records), keep=False) as bar:
                rewrites[client.name] = rewrite_records(
                    teacher, records, options, cache, seed, bar, gate
                )
        return rewrites


def slow_ways(model: Any) -> list[str]:
    """What is slower with a model of this architecture than with others, a sentence each."""
    notes = []
    if not passes_trial(model, pads_rightly):
        notes.append("texts are trained on one at a time: this architecture does not hide padding")
    if (chosen := generation_mode(model)) in (GenerationMode.SINGLE, GenerationMode.UNCACHED):
        notes.append(f"texts are written {chosen}: a faster way is not right for this architecture")
    return notes


def rectification_adapter(personal: Personal) -> Adapter:
    """R of a model: what is shared, completed by what is the client's own."""
    return {**plain_factors(personal.shared or {}), **unwrap_private(personal.own)}
