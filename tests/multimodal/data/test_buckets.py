"""Batches by length: everybody once an epoch, within the limits, and the same for the same seed."""

import random

import pytest

from multimodal.data.buckets import LengthBuckets
from multimodal.errors import UserError

LENGTHS = [random.Random(0).uniform(0.5, 12) for _ in range(203)]


def epoch(order: LengthBuckets, number: int) -> list[list[tuple[int, int]]]:
    return [order(step) for step in range(number * order.steps, (number + 1) * order.steps)]


def test_every_sample_comes_once_an_epoch_and_batches_keep_the_limits() -> None:
    order = LengthBuckets(LENGTHS, most=40, batch_size=16, seed=3)
    for number in range(3):
        batches = epoch(order, number)
        assert sorted(index for batch in batches for _, index in batch) == list(range(len(LENGTHS)))
        assert all(which == number for batch in batches for which, _ in batch)
        assert all(len(batch) <= 16 and len(batch) * max(LENGTHS[i] for _, i in batch) <= 40 for batch in batches)
    padded = sum(len(batch) * max(LENGTHS[i] for _, i in batch) for batch in epoch(order, 0))
    assert padded < 1.2 * sum(LENGTHS)


def test_the_order_follows_from_seed_and_step_alone() -> None:
    first, second = (LengthBuckets(LENGTHS, most=40, batch_size=16, seed=3) for _ in range(2))
    late = [second(step) for step in range(100, 110)]  # without the steps before
    assert [first(step) for step in range(110)][100:] == late
    assert epoch(first, 0) != epoch(first, 1)
    assert epoch(LengthBuckets(LENGTHS, most=40, batch_size=16, seed=4), 0) != epoch(first, 0)


def test_one_that_is_longer_than_the_limit_goes_alone() -> None:
    order = LengthBuckets([1.0, 50.0, 1.0], most=10, batch_size=8, seed=0, buckets=3)
    assert [(0, 1)] in epoch(order, 0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="data set is empty"):
        LengthBuckets([], most=10, batch_size=8, seed=0)
    with pytest.raises(UserError, match="expected more than 0"):
        LengthBuckets([1.0], most=0, batch_size=8, seed=0)
