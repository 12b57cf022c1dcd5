"""Timing two ways of a job in turn, A B A B, so that whatever else the machine does meets both alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from scripts.benchmarks.case import Pair, Settings, Side

LEAST_PAIRS = 3


@dataclass(frozen=True)
class Times:
    """Seconds of a step of either side, pair by pair."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    def ratios(self, *, measure: str) -> list[float]:
        """Of each pair: theirs / ours for "speed", ours / theirs for "cost"."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [theirs / ours if measure == "speed" else ours / theirs for ours, theirs in pairs]


@dataclass(frozen=True)
class Summary:
    """Of one side: the median second, its spread (the range as a share of the median), and what follows from them.

    `teraflops` are the ideal count's, done in a second; 0 where it is not counted.
    """

    seconds: float
    spread: float
    samples_per_second: float
    tokens_per_second: float
    teraflops: float


def summarise(side: Side, seconds: tuple[float, ...]) -> Summary:
    middle = statistics.median(seconds)
    return Summary(
        seconds=middle,
        spread=(max(seconds) - min(seconds)) / middle,
        samples_per_second=side.samples / middle,
        tokens_per_second=side.tokens / middle,
        teraflops=side.flops / middle / 1e12,
    )


def alternate(pair: Pair, settings: Settings) -> Times:
    """Time both sides in turn after one step each that does not count."""
    ours, theirs = [], []
    _seconds(pair.ours.step, settings)
    _seconds(pair.theirs.step, settings)
    begin = time.perf_counter()
    while len(ours) < settings.repeats:
        if len(ours) >= LEAST_PAIRS and time.perf_counter() - begin > settings.seconds:
            break
        ours.append(_seconds(pair.ours.step, settings))
        theirs.append(_seconds(pair.theirs.step, settings))
    return Times(tuple(ours), tuple(theirs))


def _seconds(step: Callable[[], object], settings: Settings) -> float:
    synchronise = torch.cuda.synchronize if settings.on_gpu else lambda: None
    synchronise()
    begin = time.perf_counter()
    step()
    synchronise()
    return time.perf_counter() - begin
