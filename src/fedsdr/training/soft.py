"""Soft targets: the base model, shown the record's own response, as the teacher of each token.

The student p_S reads the plain prompt c, x; the teacher is W0, every stream off, and its prompt
holds the reference, the record's own response y' (arXiv 2605.18028 rewrites by the same prompt). At
each token of a response y, with D the Kullback-Leibler divergence in either direction,

    L_t = w D(p_W0(. | c, x, y', y_<t), p_S(. | c, x, y_<t)) - (1 - w) log p_S(y_t | c, x, y_<t)

(Hinton et al. 2015, arXiv 1503.02531, Sec. 2, at temperature 1). y is the raw response or its
rewrite, or the student's own (`fedsdr.training.on_policy`). The words of an example without a
reference are learnt: w = 0. So are, where the loss asks for agreement, those that are not the
teacher's likeliest: a sampled rewrite that is true where the teacher mostly errs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedsdr.algorithms.contract import Loss
from fedsdr.data.batches import Batch, collate_examples, end_to_end
from fedsdr.data.example import Example
from fedsdr.model.lora import streams_off
from fedsdr.training.loss import response_logits


def forward_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities (N, V): (N,)."""
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def reverse_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || teacher) of log-probabilities (N, V): (N,)."""
    return functional.kl_div(teacher, student, reduction="none", log_target=True).sum(-1)


DIVERGENCES = {"forward": forward_divergence, "reverse": reverse_divergence}


class ReferenceTeacher:
    """The base model in a model whose layers carry streams (`fedsdr.model.lora`)."""

    def __init__(self, model: torch.nn.Module, loss: Loss, pad: int) -> None:
        """loss: its divergence, weight and agreement. pad: the token that fills shorter rows."""
        self.model, self.pad, self.weight = model, pad, loss.weight
        self.agreeing = loss.agreeing
        self.divergence = DIVERGENCES[loss.divergence]

    def losses(self, batch: Batch, examples: Sequence[Example]) -> Tensor:
        """L_t of each response token of a batch of these examples, row by row: (N,)."""
        teacher = teacher_predictions(self.model, examples, self.pad, packed=bool(batch.lengths))
        student = response_logits(self.model, batch).log_softmax(-1)
        words = functional.nll_loss(student, batch.predicted, reduction="none")
        counts = torch.tensor([len(example.response) for example in examples])
        weights = torch.tensor([self.weight if e.reference else 0.0 for e in examples])
        weight = weights.repeat_interleave(counts).to(words)
        if self.agreeing:
            weight = weight * (teacher.argmax(-1) == batch.predicted)
        return words.lerp(self.divergence(teacher, student), weight)


@torch.no_grad()
def teacher_predictions(
    model: torch.nn.Module, examples: Sequence[Example], pad: int, packed: bool = False
) -> Tensor:
    """log p_W0(. | c, x, y', y_<t), (N, V), at the examples' response tokens, one after another.

    packed: the texts end to end, where the model's attention is packed.
    """
    shown = [with_teacher_prompt(example) for example in examples]
    batch = end_to_end(shown) if packed else collate_examples(shown, pad)
    with streams_off(model):
        device = next(model.parameters()).device
        return response_logits(model, batch.to(device)).log_softmax(-1)


def with_teacher_prompt(example: Example) -> Example:
    """The example as its teacher reads it; as it is, where there is no reference."""
    prompt = example.reference.prompt if example.reference else example.prompt
    return Example(prompt, example.response)
