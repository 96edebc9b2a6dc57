"""Several clients in one pass of the shared frozen base, each row by its own client's adapters.

A step of a small model, or of few records, is dominated by the overhead of launching operations,
which K clients then share. Each client learns the same as from `fedsdr.training.local`, up to
rounding: losses, gradients, norms and optimiser states are separate.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from fedsdr.algorithms.contract import Fitted, Pull, Stage
from fedsdr.core import adapters
from fedsdr.core.adapters import Adapter
from fedsdr.core.metrics import Mean
from fedsdr.data.batches import collate_examples
from fedsdr.data.example import Example
from fedsdr.model.checkpointing import recompute_activations
from fedsdr.model.lora import Stream
from fedsdr.training.correction import Correction
from fedsdr.training.local import TRAINS, LocalTrainer, TokenLosses, active_streams

T = TypeVar("T")
EMPTY_EXAMPLE: Final = Example((0,), ())  # a padding row without a target


def train_cohort(trainers: Sequence[LocalTrainer], stages: Sequence[Stage]) -> list[Fitted]:
    """Train a stage of each client: compatible stages at once, the others one by one."""
    starts = [t.streams(s) for t, s in zip(trainers, stages, strict=True)]
    groups: dict[Any, list[int]] = {}
    for k, stage in enumerate(stages):
        groups.setdefault(stage_signature(stage, starts[k]), []).append(k)
    fitted: dict[int, Fitted] = {}
    for group in groups.values():
        if len(group) == 1 or stages[group[0]].loss.kind == "on_policy":  # responses are sampled
            fitted |= {k: trainers[k](stages[k]) for k in group}
            continue
        together = CohortTrainer([trainers[k] for k in group], [stages[k] for k in group])
        found = together.train([starts[k] for k in group])
        fitted |= dict(zip(group, found, strict=True))
    return [fitted[k] for k in range(len(trainers))]


def stage_signature(stage: Stage, streams: Mapping[Stream, Adapter]) -> Any:
    """What stages must have in common to be trained together; ranks and records may differ."""
    pull = (stage.pull.strength, frozenset(stage.pull.towards)) if stage.pull else None
    shift = None if stage.shift is None else frozenset(stage.shift)
    same = (stage.trains, stage.schedule, stage.alone, stage.loss, stage.factors)
    return (*same, pull, shift, stage.mean_gradient, frozenset(streams))


class CohortTrainer:
    """Trains one stage of K clients at once, by their trainers of one run and round."""

    def __init__(self, trainers: Sequence[LocalTrainer], stages: Sequence[Stage]) -> None:
        self.trainers, self.stages = trainers, stages
        self.first, self.stage, self.model = trainers[0], stages[0], trainers[0].model
        self.device = self.model.device

    def train(self, starts: Sequence[Mapping[Stream, Adapter]]) -> list[Fitted]:
        """starts: the streams that each client's stage begins with."""
        loaded, stream = tuple(starts[0]), TRAINS[self.stage.trains]
        shapes = [start[stream] for start in starts]
        try:
            for each in loaded:
                self.model.load_side_by_side(each, [start[each] for start in starts])
            before = adapters.unstack_clients(self.model.read(stream), shapes)
            totals, gradient = self._steps(stream, loaded)
            after = adapters.unstack_clients(self.model.read(stream), shapes)
        finally:
            for each in loaded:
                self.model.load(each, self.model.blank())
        slopes = adapters.unstack_clients(gradient, shapes) if gradient else [{}] * len(shapes)
        parts = zip(self.trainers, self.stages, totals, before, after, slopes, strict=True)
        return [trainer.fitted(stage, *rest) for trainer, stage, *rest in parts]

    def _steps(self, stream: Stream, loaded: tuple[Stream, ...]) -> tuple[list[Mean], Adapter]:
        stage, first = self.stage, self.first
        parameters, optimiser = first.learning(stage, stream)
        correction = Correction(self._corrections(), parameters)
        by_token = first.token_losses(stage.loss, Stream.FOLDED in loaded)
        batches = [t.batches(s) for t, s in zip(self.trainers, self.stages, strict=True)]
        totals = [Mean(0.0, 0.0) for _ in self.trainers]
        for step in range(stage.schedule.steps):
            self.model.activate(*active_streams(loaded, stage, step))
            found = self._backward([next(each) for each in batches], step, by_token)
            correction.apply()
            norms = clip_each([p.grad for p in parameters.values()], first.clip)
            optimiser.step()
            optimiser.zero_grad()
            totals = [total.merge(loss) for total, loss in zip(totals, found, strict=True)]
            self._check(totals, norms, step + 1)
        self.model.train_only(None)
        return totals, correction.mean_gradient(self.model.read(stream))

    def _corrections(self) -> Stage:
        """The first stage, with what corrects the gradients of all."""
        pulls = [stage.pull.towards for stage in self.stages if stage.pull]
        shifts = [stage.shift for stage in self.stages if stage.shift is not None]
        pull, shift = self.stage.pull, self.stage.shift
        if pull is not None:
            pull = Pull(adapters.stack_clients(pulls), pull.strength)
        if shift is not None:
            shift = adapters.stack_clients(shifts)
        return replace(self.stage, pull=pull, shift=shift)

    def _backward(
        self, chosen: Sequence[list[Example]], step: int, by_token: TokenLosses
    ) -> list[Mean]:
        """Add the gradient of each client's mean loss, part by part; returns the losses."""
        count = len(chosen)
        tokens = [sum(len(example.response) for example in each) for each in chosen]
        sums = torch.zeros(count, dtype=torch.float64)
        clients = zip(self.trainers, self.stages, chosen, strict=True)
        keys = [trainer.keys(stage, step, len(each)) for trainer, stage, each in clients]
        for part, own in zip(self._parts(chosen, EMPTY_EXAMPLE), self._parts(keys, 0), strict=True):
            examples = list(chain(*part))
            batch = collate_examples(examples, self.first.pad).to(self.device)
            drop = self.first.dropped(batch, list(chain(*own)))
            rows = batch.predicting.nonzero()[:, 0]
            owners = (rows // len(part[0])).to(self.device)
            with (
                recompute_activations(self.model.model, self.first.checkpointing),
                self.model.dropping(drop),
            ):
                lost = by_token(batch, examples)
                share = lost.new_tensor([1 / n for n in tokens])[owners]
                (lost * share).sum().backward()  # type: ignore[no-untyped-call]
            sums.index_add_(0, owners.cpu(), lost.detach().double().cpu())
        return [Mean(value, n) for value, n in zip(sums.tolist(), tokens, strict=True)]

    def _parts(self, chosen: Sequence[list[T]], empty: T) -> Iterator[list[list[T]]]:
        """As many rows of each client, at most a micro-batch; empty ones where one has fewer."""
        most, size = max(map(len, chosen)), self.first.micro_batch
        filled = [each + [empty] * (most - len(each)) for each in chosen]
        for start in range(0, most, size):
            yield [each[start : start + size] for each in filled]

    def _check(self, totals: Sequence[Mean], norms: Sequence[float], step: int) -> None:
        parts = zip(self.trainers, self.stages, totals, norms, strict=True)
        for trainer, stage, total, norm in parts:
            for name, value in (("loss", total.sum), ("gradient's norm", norm)):
                if not math.isfinite(value):
                    raise trainer.diverged(f"{name} became {value}", stage, step)


@torch.no_grad()
def clip_each(gradients: Sequence[Tensor | None], limit: float) -> list[float]:
    """Scale each client's gradients, (K, ...), to a norm of at most `limit`; returns the norms.

    As `torch.nn.utils.clip_grad_norm_` does for one.
    """
    known = [gradient for gradient in gradients if gradient is not None]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in known]).norm(dim=0)  # (K,)
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)
    for gradient in known:
        gradient.mul_(factors[:, None, None])
    found: list[float] = norms.tolist()
    return found
