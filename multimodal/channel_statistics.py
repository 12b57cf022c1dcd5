"""Mean and deviation of each channel of some features, by which others like them are normalised."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def channel_statistics(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C], in fp64 on the CPU, over the rows of chunks [N, C]; one chunk at a time is held.

    Raises:
        ValueError: there is no row.
    """
    rows, sums_2C = 0, torch.zeros(2, 1, dtype=torch.float64)
    for chunk_NC in chunks:
        wide_NC = chunk_NC.double()
        rows += len(wide_NC)
        sums_2C = sums_2C + torch.stack([wide_NC.sum(0), wide_NC.square().sum(0)]).cpu()
    if not rows:
        raise ValueError("no features to take the statistics from")
    mean_C, square_C = sums_2C / rows
    return mean_C, (square_C - mean_C.square()).clamp(min=0).sqrt()
