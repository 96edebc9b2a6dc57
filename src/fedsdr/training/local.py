"""The local trainer: one stage of one client, on the resident two-stream model."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from fedsdr.algorithms.contract import Fitted, Loss, Stage
from fedsdr.core import adapters, seeds
from fedsdr.core.adapters import Adapter, Private
from fedsdr.core.errors import UserError
from fedsdr.core.metrics import Mean
from fedsdr.data.batches import Batch, collate_examples, end_to_end, shuffled_batches
from fedsdr.data.example import Example, ExampleKind
from fedsdr.model.checkpointing import recompute_activations
from fedsdr.model.dropout import Dropout, lora_dropout
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.model.packing import packed_attention
from fedsdr.model.trials import rows_at_once
from fedsdr.training.annealing import CONSTANT, Annealing
from fedsdr.training.correction import Correction
from fedsdr.training.loss import summed_loss, token_losses
from fedsdr.training.soft import ReferenceTeacher
from fedsdr.training.teacher import ConsolidationTeacher, teacher_stream

# (batch, its examples) -> the loss at each response token, (N,)
TokenLosses = Callable[[Batch, Sequence[Example]], Tensor]
# (model, examples, a seed for each) -> the examples with other responses
Sampler = Callable[[Any, Sequence[Example], Sequence[int]], list[Example]]
TRAINS: Final = {"R": Stream.RECTIFY, "S": Stream.SMOOTH}


class LocalTrainer:
    """Runs stages for one client. One model serves all clients, one after another.

    examples: the client's tokenised records for each kind of target, tokenised once, and those of
        rehearsal, `rehearsed` of which are in each batch.
    smoothing_rank: of a fresh S, where it is another than R's.
    micro_batch: records in memory at a time; a batch's gradient is the same whatever it is.
    annealing: of the stages' learning rates. checkpointing: of gradients, to save memory.
    dropout: of the trained stream's input (`fedsdr.model.dropout`).
    sampler: of responses, for stages that learn on policy (`fedsdr.training.on_policy`).
    The optimiser is fresh in each stage of each round, as in OpenFedLLM.
    """

    def __init__(
        self,
        model: TwoStreamModel,
        examples: Mapping[ExampleKind, Sequence[Example]],
        *,
        client: str,
        round: int,
        seed: int,
        batch_size: int,
        clip: float,
        weight_decay: float,
        pad: int,
        smoothing_rank: int | None = None,
        micro_batch: int | None = None,
        annealing: Annealing = CONSTANT,
        checkpointing: bool = False,
        dropout: float = 0.0,
        sampler: Sampler | None = None,
        rehearsed: int = 0,
    ) -> None:
        self.model, self.examples = model, examples
        self.client, self.round, self.seed = client, round, seed
        self.batch_size, self.clip, self.weight_decay = batch_size, clip, weight_decay
        self.pad, self.smoothing_rank = pad, smoothing_rank
        self.micro_batch = micro_batch or batch_size
        self.annealing, self.checkpointing = annealing, checkpointing
        self.dropout, self.sampler, self.rehearsed = dropout, sampler, rehearsed

    def __call__(self, stage: Stage) -> Fitted:
        """Train one stream as the stage asks (`fedsdr.algorithms.contract.Fit`)."""
        streams = self.streams(stage)
        for stream, adapter in streams.items():
            self.model.load(stream, adapter)
        trained = TRAINS[stage.trains]
        before = self.model.read(trained)
        loss, gradient = self._steps(stage, trained, tuple(streams))
        return self.fitted(stage, loss, before, self.model.read(trained), gradient)

    def fitted(
        self, stage: Stage, loss: Mean, before: Adapter, after: Adapter, gradient: Adapter
    ) -> Fitted:
        """The result of a stage that took the trained stream from `before` to `after`."""
        if not adapters.all_finite(after):
            raise self.diverged("adapter became NaN or infinite", stage, stage.schedule.steps)
        fitted = Fitted(len(self.examples["raw"]), loss, Private(before), Private(after))
        if stage.trains == "S":
            return fitted
        sent = stage.shared or {}
        return replace(
            fitted,
            shared=adapters.select_tensors(after, lambda key: key in sent),
            own=Private(adapters.select_tensors(after, lambda key: key not in sent)),
            gradient=adapters.select_tensors(gradient, lambda key: key in sent),
        )

    def streams(self, stage: Stage) -> dict[Stream, Adapter]:
        """The streams that a stage loads into the model: the trained one and the frozen ones."""
        streams = {}
        if stage.trains == "R" or stage.shared is not None or stage.own is not None:
            streams[Stream.RECTIFY] = self._rectifying(stage)
        if stage.private is not None or stage.trains == "S":
            streams[Stream.SMOOTH] = self._smoothing(stage)
        if folded := adapters.strip_prefix(stage.shared or {}, adapters.FOLDED):
            streams[Stream.FOLDED] = folded
        if stage.loss.kind == "consolidation":
            assert stage.trains == "R", "it is R that learns from the client's own model"
            streams[Stream.SMOOTH] = teacher_stream(
                streams[Stream.RECTIFY], adapters.unwrap_private(stage.private)
            )
        return streams

    def _rectifying(self, stage: Stage) -> Adapter:
        """R, put together from what the server sent and what the client keeps."""
        known = {**adapters.plain_factors(stage.shared or {}), **adapters.unwrap_private(stage.own)}
        whole = len(known) == 2 * len(self.model.paths)
        return known if whole else {**self._fresh(stage), **known}

    def _smoothing(self, stage: Stage) -> Adapter:
        """S as it was left, faded where it is to be trained, or a fresh one."""
        if stage.private is None:
            return self._fresh(stage, self.smoothing_rank)
        s = adapters.unwrap_private(stage.private)
        return adapters.scale_product(s, stage.fade) if stage.trains == "S" else s

    def _fresh(self, stage: Stage, rank: int | None = None) -> Adapter:
        draw = seeds.seeded_generator(self.seed, "fresh", stage.name, self.round, self.client)
        like = self.model.blank()
        return adapters.fresh_adapter(adapters.resize_rank(like, rank) if rank else like, draw)

    def _steps(
        self, stage: Stage, stream: Stream, loaded: tuple[Stream, ...]
    ) -> tuple[Mean, Adapter]:
        parameters, optimiser = self.learning(stage, stream)
        correction = Correction(stage, parameters)
        summed = self._summed(stage.loss, Stream.FOLDED in loaded)
        batches = self.batches(stage)
        total = Mean(0.0, 0.0)
        for step in range(stage.schedule.steps):
            self.model.activate(*active_streams(loaded, stage, step))
            chosen = self.responding(stage, step, next(batches))
            loss = self._backward(chosen, self.keys(stage, step, len(chosen)), summed)
            correction.apply()
            norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), self.clip))
            optimiser.step()
            optimiser.zero_grad()
            total = total.merge(loss)
            # An infinite norm would be clipped to a step of zero, and nothing would be learnt.
            for name, value in (("loss", total.sum), ("gradient's norm", norm)):
                if not math.isfinite(value):
                    raise self.diverged(f"{name} became {value}", stage, step + 1)
        self.model.train_only(None)
        return total, correction.mean_gradient(self.model.read(stream))

    def learning(
        self, stage: Stage, stream: Stream
    ) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
        """What of the model a stage trains, by name, and its fresh optimiser."""
        factors = "AB" if stage.factors == "both" else stage.factors
        parameters = self.model.train_only(stream, factors)
        optimiser = torch.optim.AdamW(
            parameters.values(), lr=self.rate(stage), weight_decay=self.weight_decay, fused=True
        )
        return parameters, optimiser

    def token_losses(self, loss: Loss, folded: bool) -> TokenLosses:
        """A loss at each response token. folded: whether the model holds a folded part of R."""
        model = self.model.model
        if loss.kind == "consolidation":
            teacher = ConsolidationTeacher(self.model, folded)
            return lambda batch, examples: teacher.losses(batch)
        if loss.kind == "cross_entropy":
            return lambda batch, examples: token_losses(model, batch)
        return ReferenceTeacher(model, loss, self.pad).losses

    def _summed(self, loss: Loss, folded: bool) -> TokenLosses:
        """The same, added up."""
        if loss.kind == "cross_entropy":
            return lambda batch, examples: summed_loss(self.model.model, batch)
        losses = self.token_losses(loss, folded)
        return lambda batch, examples: losses(batch, examples).sum()

    def responding(self, stage: Stage, step: int, chosen: list[Example]) -> list[Example]:
        """The examples of a step, on policy with responses that the model samples."""
        if stage.loss.kind != "on_policy":
            return chosen
        assert self.sampler is not None, "the client's own prompts and checks are needed"
        place = ("on policy", stage.name, self.round, self.client, step)
        draws = [seeds.derive_seed(self.seed, *place, i) for i in range(len(chosen))]
        return self.sampler(self.model.model, chosen, draws)

    def _backward(
        self, chosen: Sequence[Example], keys: Sequence[int], summed: TokenLosses
    ) -> Mean:
        """Add the gradient of the batch's mean loss, part by part; returns the loss.

        keys: of the examples' dropout. summed: the loss, added up over the response tokens.
        """
        model = self.model.model
        size = rows_at_once(model, self.micro_batch)
        starts = range(0, len(chosen), size)
        parts = [self._batch(chosen[i : i + size]) for i in starts]
        tokens = sum(part.response_tokens for part in parts)
        total = 0.0
        for start, part in zip(starts, parts, strict=True):
            part = part.to(self.model.device)
            drop = self.dropped(part, keys[start : start + size])
            with (
                recompute_activations(model, self.checkpointing),
                packed_attention(model, bool(part.lengths)),
                self.model.dropping(drop),
            ):
                loss = summed(part, chosen[start : start + size])
                (loss / tokens).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return Mean(total, tokens)

    def _batch(self, examples: Sequence[Example]) -> Batch:
        """Their tensors in the form that is faster, padded or end to end."""
        lengths = [len(example) for example in examples]
        if self.model.packing.pays(lengths):
            return end_to_end(examples)
        return collate_examples(examples, self.pad)

    def keys(self, stage: Stage, step: int, count: int) -> list[int]:
        """Of the examples of a step, for their dropout: a function of seed, stage, round, client
        and step."""
        place = ("dropout", stage.name, self.round, self.client, step)
        return [
            seeds.derive_seed(self.seed, *place, i) if self.dropout else 0 for i in range(count)
        ]

    def dropped(self, part: Batch, keys: Sequence[int]) -> Dropout | None:
        return lora_dropout(self.dropout, part, keys) if self.dropout else None

    def rate(self, stage: Stage) -> float:
        return self.annealing.rate(stage.schedule.lr, self.round)

    def batches(self, stage: Stage) -> Iterator[list[Example]]:
        """The stage's batches, endlessly: a function of seed, stage, round and client."""
        examples = self.examples[stage.targets]
        size = self.batch_size - self.rehearsed
        own = self._drawn(examples, size, "batches", stage)
        if not self.rehearsed:
            yield from own
            return
        # A client with fewer records than a batch has rehearses fewer, too.
        fewer = round(self.rehearsed * min(1.0, len(examples) / size))
        again = self._drawn(self.examples["rehearsed"], max(1, fewer), "rehearsal", stage)
        for chosen, others in zip(own, again, strict=True):
            yield [*chosen, *others]

    def _drawn(
        self, examples: Sequence[Example], size: int, purpose: str, stage: Stage
    ) -> Iterator[list[Example]]:
        draw = seeds.seeded_generator(self.seed, purpose, stage.name, self.round, self.client)
        for chosen in shuffled_batches(len(examples), size, draw):
            yield [examples[i] for i in chosen]

    def diverged(self, what: str, stage: Stage, step: int) -> UserError:
        return UserError(
            f"the {what} at client {self.client!r}, round {self.round}, stage "
            f"{stage.name!r}, step {step}, with learning rate {self.rate(stage)}: "
            "lower the learning rate (local.rectify_lr, local.smooth_lr)"
        )


def active_streams(loaded: Iterable[Stream], stage: Stage, step: int) -> list[Stream]:
    """The streams that take part in a step."""
    alone = _falls_alone(step, stage.alone)
    return [stream for stream in loaded if not alone or stream != Stream.SMOOTH]


def _falls_alone(step: int, share: float) -> bool:
    """Spread a share of the steps evenly: with 0.5, every second one."""
    return math.floor((step + 1) * share) > math.floor(step * share)
