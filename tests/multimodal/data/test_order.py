"""The order of samples is a pure function, and the loader starts anywhere with the same result."""

import random

import pytest
import torch

from multimodal.data.order import SeededOrder, epoch_order, sample_rng, step_loader
from multimodal.errors import UserError


class Numbers:
    """Samples are (index, random number); index 3 is broken."""

    def __len__(self) -> int:
        return 11

    def sample(self, index: int, rng: random.Random) -> tuple[int, float] | None:
        return None if index == 3 else (index, rng.random())


class Faulty(Numbers):
    def sample(self, index: int, rng: random.Random) -> tuple[int, float] | None:
        raise UserError("photo.jpg is no picture")


def load(first: int, last: int, *, workers: int = 0, accumulate: int = 1, source: Numbers | None = None) -> list:
    order = SeededOrder(length=11, batch_size=4, seed=5)
    source = source or Numbers()
    steps = step_loader(
        source, list, order=order, first_step=first, last_step=last, accumulate=accumulate, workers=workers
    )
    return list(steps)


def test_every_epoch_is_another_permutation() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_steps_cover_each_epoch_once_and_need_no_history() -> None:
    order = SeededOrder(length=11, batch_size=4, seed=5)
    forward = [order(step) for step in range(11)]
    pairs = [pair for batch in forward for pair in batch]
    assert pairs[:22] == [(epoch, int(i)) for epoch in (0, 1) for i in epoch_order(11, 5, epoch)]
    fresh = SeededOrder(length=11, batch_size=4, seed=5)
    assert [fresh(step) for step in reversed(range(11))] == forward[::-1]


def test_a_sample_has_its_own_randomness_in_each_epoch() -> None:
    draws = {sample_rng(seed, epoch, index).random() for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)}
    assert len(draws) == 8
    assert sample_rng(1, 2, 3).random() == sample_rng(1, 2, 3).random()


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_goes_on_from_any_step(workers: int) -> None:
    whole = load(0, 9)
    assert [data.step for data in whole] == list(range(9))
    assert load(4, 9, workers=workers) == whole[4:]


def test_broken_samples_are_left_out_and_counted() -> None:
    steps = load(0, 11)  # 44 samples: four epochs
    assert sum(data.skipped for data in steps) == 4
    assert all(data.samples + data.skipped == 4 for data in steps)
    assert all(index != 3 for data in steps for batch in data.micro_batches for index, _ in batch)


def test_micro_batches_hold_the_samples_of_the_step_in_order() -> None:
    for one, four in zip(load(0, 9), load(0, 9, accumulate=4), strict=True):
        assert [sample for batch in four.micro_batches for sample in batch] == one.micro_batches[0]
        assert all(len(batch) == 1 for batch in four.micro_batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_set_arrives_as_its_own_line(workers: int) -> None:
    with pytest.raises(UserError, match=r"^photo\.jpg is no picture$"):
        load(0, 2, workers=workers, source=Faulty())


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generators_are_not_moved(workers: int) -> None:
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    load(0, 3, workers=workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        SeededOrder(length=0, batch_size=4, seed=0)


def test_what_has_an_order_of_its_own_is_not_shuffled() -> None:
    order = SeededOrder(length=5, batch_size=4, seed=5, shuffle=False)
    assert order(0) + order(1) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]
