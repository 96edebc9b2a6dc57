"""Batches: which examples a local step sees, and their tensors, padded or packed end to end."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsdr.data.example import Example

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
        """Positions whose next token is a response token: (B, T), booleans."""
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


def collate_examples(examples: Sequence[Example], pad: int) -> Batch:
    """Pad examples on the right to the longest; labels are IGNORE outside the responses."""
    longest = max(map(len, examples))
    ids = torch.full((len(examples), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for row, example in enumerate(examples):
        length, start = len(example), len(example.prompt)
        ids[row, :length] = _ids([example])
        mask[row, :length] = 1
        labels[row, start:length] = ids[row, start:length]
    return Batch(ids, mask, labels)


def end_to_end(examples: Sequence[Example]) -> Batch:
    """The examples one after another in a single row, without padding."""
    ids = _ids(examples)[None]
    labels, start = ids.clone(), 0
    for example in examples:
        labels[0, start : start + len(example.prompt)] = IGNORE
        start += len(example)
    return Batch(ids, torch.ones_like(ids), labels, tuple(map(len, examples)))


def _ids(examples: Sequence[Example]) -> Tensor:
    """Prompts and responses end to end, (N,): torch.tensor of a list is many times slower."""
    ids = array("q")
    for example in examples:
        ids.extend(example.prompt)
        ids.extend(example.response)
    return torch.frombuffer(ids, dtype=torch.long)


def shuffled_batches(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
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
