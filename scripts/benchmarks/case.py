"""What a row of the benchmark is: two ways of one job, on the same inputs and weights, and what is expected of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from multimodal.train.precision import Precision
from scripts.benchmarks.sizes import Size

TOLERANCE, GPU_TOLERANCE = 2e-4, 5e-2
"""Of losses, outputs and gradients as a share of the largest value: in fp32, and on a GPU, where the decoder is in bf16
and convolutions in TF32. Gradients may differ ten times as much."""

Compiled = Literal["nobody", "ours", "both"]
Measure = Literal["speed", "cost"]
"""speed: how many times as fast we are (theirs / ours); cost: how many times as long we take (ours / theirs)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the benchmark runs. Small enough to be handed to a fresh process.

    Attributes:
        size: shapes of all that is built.
        device: where it runs.
        precision: of what is timed; outputs are compared in fp32 where the weights are.
        without: the tricks that are taken away, one a row; empty = each.
        repeats: pairs of timings at most.
        seconds: for the pairs of one row; 3 pairs are timed in any case, or `repeats` if that is less.
        memory: whether peaks are measured, each in a fresh process.
        compile: whose layers are compiled in the captioning rows.
    """

    size: Size
    device: str = "cpu"
    precision: Precision = "fp32"
    without: tuple[str, ...] = ()
    repeats: int = 5
    seconds: float = 12.0
    memory: bool = True
    seed: int = 0
    compile: Compiled = "nobody"

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.torch_device.type == "cuda"

    @property
    def tolerance(self) -> float:
        """Of what is compared."""
        return GPU_TOLERANCE if self.on_gpu else TOLERANCE


@dataclass(frozen=True)
class Side:
    """One way of doing the job: `step()` does it once.

    Attributes:
        samples: of a step.
        tokens: text tokens (frames, for sound) of a step that are no padding.
        flops: the ideal count of a step (`flops`); 0 = not counted.
    """

    step: Callable[[], object]
    samples: int
    tokens: int
    flops: float = 0.0


@dataclass(frozen=True)
class Agreement:
    """How far the two sides' results lie apart: the largest difference, as a share of the largest value."""

    of: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Pair:
    """Both sides, built. `agree` compares what they compute; None where their functions differ by design."""

    ours: Side
    theirs: Side
    agree: Callable[[], Agreement] | None


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio, on two CPU cores and on a GPU; None = no goal there."""

    cpu: float | None
    gpu: float | None
    of: Literal["time", "memory", "mfu"] = "time"

    def bound(self, settings: Settings) -> float | None:
        return self.gpu if settings.on_gpu else self.cpu


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row: what is compared with what, and how to build it.

    Attributes:
        peer: who the other side is.
        measure: which way round the ratio of times goes.
        memory: whether to measure peaks.
        sweep: (what grows, its value), for the plots.
        note: what a reader must know, such as functions that differ.
    """

    suite: str
    name: str
    peer: str
    build: Callable[[], Pair]
    measure: Measure = "speed"
    goals: tuple[Goal, ...] = ()
    memory: bool = False
    sweep: tuple[str, float] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A number that is no pair of timings, such as the share of time that a training waits for data.

    Attributes:
        measure: makes the number; None where it cannot be had, which `note` explains.
        most: it is to be at most so much; None = no goal.
    """

    suite: str
    name: str
    measure: Callable[[], float] | None
    most: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Suite:
    """The rows of one part of the benchmark."""

    cases: tuple[Case, ...]
    findings: tuple[Finding, ...] = field(default=())


def compare(of: str, ours: torch.Tensor, theirs: torch.Tensor, *, tolerance: float) -> Agreement:
    """The largest difference of two results as a share of the largest value of the second.

    Raises:
        ValueError: results of other shapes: these sides do not do the same job.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"{of}: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
    difference = float((ours - theirs).abs().max()) / max(float(theirs.abs().max()), 1e-12)
    return Agreement(of, difference if difference == difference else float("inf"), tolerance)


def worst(*agreements: Agreement) -> Agreement:
    """The one that is farthest from holding."""
    return max(agreements, key=lambda one: one.difference / one.tolerance)
