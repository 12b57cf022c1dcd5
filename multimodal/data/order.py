"""Which sample comes when, as a pure function, and a loader whose whole state is one integer.

The order of samples depends on (seed, epoch) alone, the batch of a step on (seed, step), and a sample's own randomness
on (seed, epoch, index). So a run that stops after k steps and goes on from there sees exactly what an uninterrupted run
sees, with any number of worker processes.
"""

import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from multimodal.errors import UserError


class SampleSource(Protocol):
    """A data set with random access. `sample` returns None for a broken sample, which is then skipped and counted."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: random.Random) -> Any: ...


class Order(Protocol):
    """Which samples make up a step, as a pure function of the step."""

    seed: int

    @property
    def fingerprint(self) -> dict[str, int]:
        """What the order depends on; must be the same on resume."""
        ...

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of optimizer step `step` (from 0)."""
        ...


@dataclass(frozen=True)
class StepData:
    """All data of one optimizer step: its micro-batches, how many samples they hold, and how many were skipped."""

    step: int
    epoch: int
    micro_batches: list[Any]
    samples: int
    skipped: int
    error: str | None = None


def sample_rng(seed: int, epoch: int, index: int) -> random.Random:
    """The random generator of one sample in one epoch."""
    return random.Random(f"sample/{seed}/{epoch}/{index}")


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """A permutation of range(length), int64 [length], that depends on the arguments only."""
    generator = torch.Generator().manual_seed(random.Random(f"order/{seed}/{epoch}").getrandbits(63))
    return torch.randperm(length, generator=generator)


class SeededOrder:
    """The endless row of (epoch, index) pairs cut into steps of `batch_size`. A batch may reach into a next epoch.

    Args:
        shuffle: False takes samples as they stand, which suits data that begin with what is to be learnt first.
    """

    def __init__(self, *, length: int, batch_size: int, seed: int, shuffle: bool = True) -> None:
        if length < 1:
            raise UserError("the training data set is empty: expected at least one sample")
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self._cached: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def fingerprint(self) -> dict[str, int]:
        """What must be the same on resume."""
        found = {"samples": self.length, "batch_size": self.batch_size, "seed": self.seed}
        return found if self.shuffle else found | {"in_order": 1}

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of optimizer step `step` (from 0)."""
        start = step * self.batch_size
        return [self._at(position) for position in range(start, start + self.batch_size)]

    def _at(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.length)
        if not self.shuffle:
            return epoch, offset
        if self._cached[0] != epoch:
            self._cached = (epoch, epoch_order(self.length, self.seed, epoch))
        return epoch, int(self._cached[1][offset])


class _StepDataset(TorchDataset[StepData]):
    """Maps a step number to its data: what the worker processes run."""

    def __init__(
        self, source: SampleSource, collate: Callable[[list[Any]], Any], *, order: Order, accumulate: int
    ) -> None:
        self.source, self.collate, self.order, self.accumulate = source, collate, order, accumulate

    def __getitem__(self, step: int) -> StepData:
        pairs = self.order(step)
        try:
            drawn = [self.source.sample(index, sample_rng(self.order.seed, epoch, index)) for epoch, index in pairs]
            samples = [sample for sample in drawn if sample is not None]
            size = -(-len(pairs) // self.accumulate)
            micro_batches = [self.collate(samples[i : i + size]) for i in range(0, len(samples), size)]
        except UserError as error:
            # A worker's exception reaches the main process wrapped in a traceback; the message alone is wanted there.
            return StepData(step, pairs[0][0], [], 0, 0, error=str(error))
        return StepData(step, pairs[0][0], micro_batches, len(samples), len(pairs) - len(samples))


def step_loader(
    source: SampleSource,
    collate: Callable[[list[Any]], Any],
    *,
    order: Order,
    first_step: int,
    last_step: int,
    accumulate: int = 1,
    workers: int = 0,
) -> Generator[StepData, None, None]:
    """Data of steps `first_step` .. `last_step - 1`, in order. Raises `UserError` where the data set raised one.

    The workers are started by this call, before the first item is asked for.
    """
    loader = DataLoader(
        _StepDataset(source, collate, order=order, accumulate=accumulate),
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),  # its own, so that the global generator is not advanced
    )
    return _checked(iter(loader))


def _checked(items: Iterator[StepData]) -> Generator[StepData, None, None]:
    for item in items:
        if item.error is not None:
            raise UserError(item.error)
        yield item
