"""On-policy learning: the model's own responses, sampled in each step, in place of given ones.

SDFT (Shenfeld et al. 2026, arXiv 2601.19897) samples y from the student's plain prompt and
minimises the divergence from the teacher that is shown the reference, at the tokens of y
(`fedsdr.training.soft`); the gradient does not go through the sampling, as in GKD (Agarwal et al.
2024, arXiv 2306.13649).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from fedsdr.data.example import Example
from fedsdr.data.template import ChatFormat
from fedsdr.distillation.rewrite import judge_answers
from fedsdr.distillation.verify import Gate
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.model.lora import streams_off

TEMPERATURE: Final = 1.0  # else the samples would not be the student's own distribution


class OnPolicySampler:
    """Samples a client's responses, and judges them by the checks that its rewrites must pass."""

    def __init__(self, chat: ChatFormat, gate: Gate, rows: int) -> None:
        """rows: responses that are sampled at a time."""
        self.chat, self.gate, self.rows = chat, gate, rows

    def __call__(
        self, model: Any, examples: Sequence[Example], draws: Sequence[int]
    ) -> list[Example]:
        """The examples with responses of the model as it stands; draws: a seed for each.

        One whose response the gate refuses is as it was, without a reference: its own words are
        learnt. So is one that has no reference.
        """
        jobs, records = {}, {}
        for i, example in enumerate(examples):
            if example.reference is not None:
                jobs[i] = Job(example.prompt, example.reference.limit, draws[i])
                records[i] = example.reference.record
        new = generate_batch(model, [*jobs.values()], self.chat.ends, TEMPERATURE, self.rows)
        written = dict(zip(jobs, new, strict=True))
        with streams_off(model):  # a check may ask the base model
            judged = judge_answers(self.chat, records, written, self.gate)
        return [
            example
            if i not in written
            else replace(example, reference=None)
            if judged[i].verdict.reason
            else replace(example, response=tuple(written[i]))
            for i, example in enumerate(examples)
        ]
