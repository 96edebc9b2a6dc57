"""Batches: padding and labels by hand, and epochs that show each example once."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.data.batches import IGNORE, collate_examples, shuffled_batches
from fedsdr.data.example import Example


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def take(count: int, size: int, number: int, seed: int = 0) -> list[list[int]]:
    return list(itertools.islice(shuffled_batches(count, size, draw(seed)), number))


def test_a_batch_is_padded_on_the_right_and_labels_are_the_responses():
    batch = collate_examples(
        [Example((1, 2, 3), (4,)), Example((5,), (6, 9)), Example((), (7, 8))], pad=9
    )
    no = IGNORE
    assert batch.ids.tolist() == [[1, 2, 3, 4], [5, 6, 9, 9], [7, 8, 9, 9]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [[no, no, no, 4], [no, 6, 9, no], [7, 8, no, no]]
    assert batch.response_tokens == 5
    assert {batch.ids.dtype, batch.mask.dtype, batch.labels.dtype} == {torch.int64}


def test_a_batch_of_one_has_no_padding():
    batch = collate_examples([Example((1, 2), (3,))], pad=0)
    assert batch.ids.tolist() == [[1, 2, 3]]
    assert batch.mask.all()


def test_a_batch_moves_as_a_whole():
    batch = collate_examples([Example((1,), (2,))], pad=0).to(torch.device("meta"))
    assert {batch.ids.device.type, batch.mask.device.type, batch.labels.device.type} == {"meta"}


counts, sizes = st.integers(1, 40), st.integers(1, 50)


@settings(deadline=None)
@given(counts, sizes, st.integers(0, 1000))
def test_every_epoch_shows_each_index_once(count, size, seed):
    epochs = 4
    number = -(-epochs * count // min(size, count))
    drawn = [i for batch in take(count, size, number, seed) for i in batch]
    for epoch in range(epochs):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(deadline=None)
@given(counts, sizes)
def test_no_batch_holds_an_index_twice(count, size):
    for batch in take(count, size, 30):
        assert len(batch) == len(set(batch)) == min(size, count)


def test_batches_depend_on_the_generator_alone():
    assert take(10, 3, 20, seed=1) == take(10, 3, 20, seed=1)
    assert take(10, 3, 20, seed=1) != take(10, 3, 20, seed=2)


def test_epochs_have_different_orders():
    drawn = [i for batch in take(30, 5, 12) for i in batch]
    assert drawn[:30] != drawn[30:]
    assert drawn[:30] != sorted(drawn[:30])


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(ValueError, match="empty data set"):
        next(shuffled_batches(0, 4, draw()))
