"""`[rehearsal]`: texts of the base model in clients' batches, so that less is forgotten."""

from typing import Annotated

from pydantic import Field

from fedsdr.recipe.sections.base import Positive, Section


class Rehearsal(Section):
    """Prompts that the base model writes, with its own answers, in place of some of the client's
    records in every batch (`fedsdr.distillation.rehearsal`). No client's data are in them."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the examples of a batch that is rehearsed, rounded to whole examples and at
    least one; 0 for none. All tokens of a batch count alike, so that long answers weigh more."""
    count: Positive = 256
    """Examples to generate before the first round. All clients rehearse the same ones."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """The sampling temperature of prompts. Answers are greedy."""
    prompt_tokens: Positive = 64
    """The longest prompt; longer ones are discarded."""
    answer_tokens: Positive = 128
    """The longest answer; what is longer is learnt up to there."""

    def examples(self, batch_size: int) -> int:
        """Rehearsed examples in a batch."""
        return max(1, round(self.share * batch_size)) if self.share else 0

    @property
    def most_tokens(self) -> int:
        """The most tokens of a prompt with its answer."""
        return self.prompt_tokens + self.answer_tokens
