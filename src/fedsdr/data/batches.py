"""Batches: which examples a local step sees, and their tensors, padded or end to end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsdr.data.template import Example

IGNORE = -100  # torch's cross entropy skips this label


@dataclass(frozen=True)
class Batch:
    """Tensors of shape (B, T): ids, attention mask, and labels with IGNORE.

    Right-padded; or, where `lengths` are given, (1, N): examples of these lengths end to end.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    lengths: tuple[int, ...] = ()

    @property
    def response_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())

    @property
    def predicting(self) -> Tensor:
        """Where the next token is one of a response: (B, T), booleans."""
        places = torch.zeros_like(self.labels, dtype=torch.bool)
        places[:, :-1] = self.labels[:, 1:] != IGNORE
        if self.lengths:  # the last token of an example does not predict the next example
            places[:, torch.tensor(self.lengths).cumsum(0) - 1] = False
        return places

    @property
    def predicted(self) -> Tensor:
        """The response tokens that can be predicted, row by row: (N,)."""
        return self.labels[:, 1:][self.predicting[:, :-1]]

    def to(self, device: torch.device) -> "Batch":
        ids, mask, labels = (each.to(device) for each in (self.ids, self.mask, self.labels))
        return Batch(ids, mask, labels, self.lengths)


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Pad examples on the right to the longest; labels are IGNORE outside the responses."""
    longest = max(map(len, examples))
    ids = torch.full((len(examples), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for row, example in enumerate(examples):
        length, start = len(example), len(example.prompt)
        ids[row, :length] = torch.tensor(example.prompt + example.response)
        mask[row, :length] = 1
        labels[row, start:length] = torch.tensor(example.response)
    return Batch(ids, mask, labels)


def end_to_end(examples: Sequence[Example]) -> Batch:
    """The examples one after another in a single row, without padding."""
    ids = [token for example in examples for token in example.prompt + example.response]
    labels = [
        label
        for example in examples
        for label in (*[IGNORE] * len(example.prompt), *example.response)
    ]
    row = torch.tensor([ids])
    return Batch(row, torch.ones_like(row), torch.tensor([labels]), tuple(map(len, examples)))


def shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless index batches of `size`: epoch after epoch, each a new permutation of `count`.

    A batch never holds an index twice unless there are fewer than `size` of them: the last
    batch of an epoch is filled from the next one.
    """
    if count < 1:
        raise ValueError("cannot draw batches from an empty data set")
    size = min(size, count)
    queue: list[int] = []
    while True:
        if len(queue) < size:
            tail = set(queue)
            order = torch.randperm(count, generator=generator).tolist()
            # Indices still queued go to the end of the new epoch, so that no batch repeats one.
            queue += [i for i in order if i not in tail] + [i for i in order if i in tail]
        yield queue[:size]
        queue = queue[size:]
