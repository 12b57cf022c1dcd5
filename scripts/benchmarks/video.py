"""Clips: sampling frames by seeking against reading the whole clip, and the temporal aggregator against a resampler
whose attention is written out in products and a softmax, as those of others are.
"""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multimodal.train.precision import autocast
from scripts.benchmarks.case import Agreement, Case, Pair, Settings, Side, Suite, compare, worst
from vision import temporal_aggregator
from vision.clip import read_clip
from vision.clip_sampling import Clip, Timeline
from vision.clip_writing import write_mp4
from vision.encoder import ImageFeatures
from vision.temporal_aggregator import TemporalAggregator

FPS = 25
SAMPLED = 16


def video_suite(settings: Settings) -> Suite:
    cases = [
        Case(
            suite="video",
            name=f"{SAMPLED} frames of a clip of {settings.size.clip_seconds:g} s",
            peer="PyAV, the whole clip",
            build=partial(_decoding, settings),
        )
    ]
    cases += [
        Case(
            suite="video",
            name=f"temporal aggregator, forward and backward, {frames} frames",
            peer="resampler with einsum",
            build=partial(_aggregating, settings, frames),
            memory=True,
            sweep=("frames", frames),
        )
        for frames in settings.size.frames
    ]
    return Suite(tuple(cases))


def _decoding(settings: Settings) -> Pair:
    folder = tempfile.TemporaryDirectory(prefix="benchmark-clip-")
    path = Path(folder.name) / "clip.mp4"
    write_mp4(_moving_noise(settings), path, fps=FPS)

    def ours() -> Clip:
        assert folder.name  # kept as long as the step is
        return read_clip(path, count=SAMPLED)

    def theirs() -> Clip:
        return _read_whole(path, SAMPLED)

    def agree() -> Agreement:
        found = [torch.from_numpy(np.stack([np.asarray(frame) for frame in read().frames])) for read in (ours, theirs)]
        return compare("pixels", *found, tolerance=0.0)

    frames = round(settings.size.clip_seconds * FPS)
    return Pair(Side(ours, 1, frames), Side(theirs, 1, frames), agree)


def _moving_noise(settings: Settings) -> Iterator[Image.Image]:
    """A picture that wanders, so that a video codec has what it expects."""
    side, rng = settings.size.clip_side, np.random.default_rng(settings.seed)
    small = Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    whole = small.resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    steps = random.Random(settings.seed)
    x = y = side // 2
    for _ in range(round(settings.size.clip_seconds * FPS)):
        x, y = (min(max(at + steps.randint(-3, 3), 0), side - 1) for at in (x, y))
        yield whole.crop((x, y, x + side - side % 2, y + side - side % 2))


def _read_whole(path: Path, count: int) -> Clip:
    """Decode every frame, then pick: what most loaders do."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        base = stream.time_base or Fraction(1, FPS)
        starts = [Fraction(frame.pts or 0) * base for frame in frames]
        pictures = [frame.to_image() for frame in frames]
    timeline = Timeline(starts, starts[-1] + Fraction(1, FPS))
    return timeline.clip({number: pictures[number] for number in timeline.shown(count)})


def _aggregating(settings: Settings, frames: int) -> Pair:
    size, device = settings.size, settings.torch_device
    features = size.encoder.width * 6
    torch.manual_seed(settings.seed)
    aggregator = TemporalAggregator(size.aggregator, feature_dim=features, out_dim=size.decoder.width).to(device)
    per_frame = size.encoder.patch_side**2 + 1
    tokens = torch.randn(frames * per_frame, features, device=device)
    inputs = ImageFeatures(tokens, (per_frame,) * frames)
    times = torch.linspace(0, 1, frames, device=device)

    def loss() -> Tensor:
        return aggregator(inputs, frames=(frames,), times=times).tokens.float().square().sum()

    def step() -> None:
        aggregator.zero_grad(set_to_none=True)
        with autocast(device, settings.precision):
            total = loss()
        total.backward()

    def written_out() -> None:
        with einsum_attention():
            step()

    def agree() -> Agreement:
        fused = loss()
        with einsum_attention():
            plain = loss()
        weights = list(aggregator.parameters())
        gradients = zip(torch.autograd.grad(fused, weights), torch.autograd.grad(plain, weights), strict=True)
        return worst(
            compare("tokens", fused, plain, tolerance=settings.tolerance),
            *(compare("gradient", a, b, tolerance=10 * settings.tolerance) for a, b in gradients),
        )

    count = frames * per_frame
    return Pair(Side(step, frames, count), Side(written_out, frames, count), agree)


@contextmanager
def einsum_attention() -> Iterator[None]:
    """The aggregator attends by products, masking and a softmax, without a fused kernel."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, **_: Any) -> Tensor:
        scores = torch.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = (scores - scores.amax(dim=-1, keepdim=True).detach()).softmax(dim=-1)
        return torch.einsum("bhqk,bhkd->bhqd", weights, v)

    with mock.patch.object(temporal_aggregator, "attend", attend):
        yield
