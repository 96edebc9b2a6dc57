"""Batches: which examples a local step sees, and their padded tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsdr.data.template import Example

IGNORE = -100  # torch's cross entropy skips this label


@dataclass(frozen=True)
class Batch:
    """Right-padded tensors of shape (B, T): ids, attention mask, and labels with IGNORE."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def response_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.mask.to(device), self.labels.to(device))


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
