"""The local trainer: one stage of one client, on the resident two-stream model."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedsdr import adapters, seeds
from fedsdr.adapters import Adapter, Private
from fedsdr.algorithms.contract import Fitted, Stage, Targets
from fedsdr.data.batches import IGNORE, Batch, collate, shuffled
from fedsdr.data.template import Example
from fedsdr.errors import UserError
from fedsdr.metrics import Mean
from fedsdr.model.lora import Stream, TwoStreamModel


def response_loss(model: torch.nn.Module, batch: Batch) -> Mean:
    """sum of -log f(y | c, x) over the response tokens, and their number, as plain numbers."""
    return Mean(float(summed_loss(model, batch).detach()), batch.response_tokens)


def summed_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    """-log f(y_i | c_i, x_i), summed over the batch's response tokens: a scalar tensor.

    The supervised target of arXiv 2605.18028, Sec. method; the prompt is not learnt.
    """
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits  # (B, T, V)
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        batch.labels[:, 1:].flatten(),
        ignore_index=IGNORE,
        reduction="sum",
    )


class LocalTrainer:
    """Runs stages for one client. One model serves all clients, one after another.

    examples: the client's tokenised records for each kind of target, tokenised once.
    The optimiser is fresh in each stage of each round, as in OpenFedLLM.
    """

    def __init__(
        self,
        model: TwoStreamModel,
        examples: Mapping[Targets, Sequence[Example]],
        *,
        client: str,
        round: int,
        seed: int,
        batch_size: int,
        clip: float,
        weight_decay: float,
        pad: int,
    ) -> None:
        self.model, self.examples = model, examples
        self.client, self.round, self.seed = client, round, seed
        self.batch_size, self.clip, self.weight_decay = batch_size, clip, weight_decay
        self.pad = pad

    def __call__(self, stage: Stage) -> Fitted:
        """Train one stream as the stage asks (`fedsdr.algorithms.contract.Fit`)."""
        stream = Stream.RECTIFY if stage.trains == "shared" else Stream.SMOOTH
        company = self._load(stage, stream)
        before = self.model.read(stream)
        loss = self._steps(stage, stream, company)
        after = self.model.read(stream)
        if not adapters.all_finite(after):
            raise self._diverged("adapter became NaN or infinite", stage, stage.schedule.steps)
        examples = len(self.examples["raw"])
        if stream is Stream.RECTIFY:
            return Fitted(examples, loss, shared=after)
        return Fitted(examples, loss, private=Private(after), before=Private(before))

    def _load(self, stage: Stage, stream: Stream) -> tuple[Stream, ...]:
        """Put the stage's adapters into the model; returns the streams that are in company."""
        company = []
        if stage.shared is not None:
            self.model.load(Stream.RECTIFY, stage.shared)
            company.append(Stream.RECTIFY)
        if stage.private is not None:
            self.model.load(Stream.SMOOTH, adapters.unwrap(stage.private))
            company.append(Stream.SMOOTH)
        if stream not in company:
            self.model.load(stream, self._fresh(stage, stream))
            company.append(stream)
        return tuple(company)

    def _fresh(self, stage: Stage, stream: Stream) -> Adapter:
        draw = seeds.generator(self.seed, "fresh", stage.name, self.round, self.client)
        return adapters.fresh(self.model.read(stream), draw)

    def _steps(self, stage: Stage, stream: Stream, company: tuple[Stream, ...]) -> Mean:
        parameters = self.model.train_only(stream)
        optimiser = torch.optim.AdamW(
            parameters, lr=stage.schedule.lr, weight_decay=self.weight_decay, fused=True
        )
        examples = self.examples[stage.targets]
        draw = seeds.generator(self.seed, "batches", stage.name, self.round, self.client)
        batches = shuffled(len(examples), self.batch_size, draw)
        total = Mean(0.0, 0.0)
        for step in range(stage.schedule.steps):
            alone = _falls_alone(step, stage.alone)
            self.model.activate(*([stream] if alone else company))
            chosen = [examples[i] for i in next(batches)]
            batch = collate(chosen, self.pad).to(self.model.device)
            loss = summed_loss(self.model.model, batch)
            (loss / batch.response_tokens).backward()  # type: ignore[no-untyped-call]
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.clip))
            optimiser.step()
            optimiser.zero_grad()
            total = total.merge(Mean(float(loss.detach()), batch.response_tokens))
            # An infinite norm would be clipped to a step of nothing, and nothing be learnt.
            for name, value in (("loss", total.sum), ("gradient's norm", norm)):
                if not math.isfinite(value):
                    raise self._diverged(f"{name} became {value}", stage, step + 1)
        self.model.train_only(None)
        return total

    def _diverged(self, what: str, stage: Stage, step: int) -> UserError:
        return UserError(
            f"the {what} at client {self.client!r}, round {self.round}, stage "
            f"{stage.name!r}, step {step}, with learning rate {stage.schedule.lr}: "
            "lower the learning rate (local.rectify_lr, local.smooth_lr)"
        )


def _falls_alone(step: int, share: float) -> bool:
    """Spread a share of the steps evenly: with 0.5, every second one."""
    return math.floor((step + 1) * share) > math.floor(step * share)
