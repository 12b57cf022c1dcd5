"""Batches by total length instead of by number: samples of like length together, each batch about as much work."""

import random
from collections.abc import Sequence

from multimodal.errors import UserError


class LengthBuckets:
    """The order of samples for `train`: each step takes samples of one bucket, whose padded lengths add up to a limit.

    Samples are sorted into buckets of like length once. In every epoch they are shuffled within their buckets, cut into
    batches, and the batches of all buckets shuffled; all of it follows from (seed, epoch) alone, as resuming wants.

    Args:
        lengths: of each sample, in any unit, such as seconds.
        most: the longest sample of a batch times its number of samples is at most this; a longer one goes alone.
        batch_size: at most so many samples in a batch.
        buckets: so many at most, each with about the same share of the samples.
        seed: of the order.

    Raises:
        UserError: no samples, or limits below the possible.
    """

    def __init__(self, lengths: Sequence[float], *, most: float, batch_size: int, seed: int, buckets: int = 8) -> None:
        if not lengths:
            raise UserError("the training data set is empty: expected at least one sample")
        if most <= 0 or buckets < 1:
            raise UserError(f"batches of at most {most} in {buckets} buckets: expected more than 0 of both")
        self.length, self.batch_size, self.seed = len(lengths), batch_size, seed
        by_length = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
        share = -(-len(lengths) // buckets)
        self._buckets = [by_length[start : start + share] for start in range(0, len(by_length), share)]
        self._sizes = [max(1, min(batch_size, int(most / max(lengths[b[-1]], 1e-9)))) for b in self._buckets]
        self.steps = sum(-(-len(b) // size) for b, size in zip(self._buckets, self._sizes, strict=True))
        self._cached: tuple[int, list[list[int]]] = (-1, [])

    @property
    def fingerprint(self) -> dict[str, int]:
        """What must be the same on resume."""
        return {"samples": self.length, "batch_size": self.batch_size, "seed": self.seed, "steps_an_epoch": self.steps}

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of optimizer step `step` (from 0)."""
        epoch, number = divmod(step, self.steps)
        if self._cached[0] != epoch:
            self._cached = (epoch, self._batches(epoch))
        return [(epoch, index) for index in self._cached[1][number]]

    def _batches(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"buckets/{self.seed}/{epoch}")
        batches = []
        for bucket, size in zip(self._buckets, self._sizes, strict=True):
            shuffled = rng.sample(bucket, len(bucket))
            batches += [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        rng.shuffle(batches)
        return batches
