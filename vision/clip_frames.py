"""Sampled frames of a clip on their way to the aggregator: as tiles, or as what the image encoder made of them.

The controls of an evaluation are made here too: frames in reverse order, the middle one at every moment, blank ones.

Legend: F frames, N tiles of all frames, S tile side in pixels, L tokens of all frames, C feature width.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vision.encoder import ImageFeatures
from vision.tiling import Grid, TileBatch, Tiles

FrameOrder = Callable[[Sequence[Any]], list[Any]]
"""As many frames as are given, in another order."""


def backwards(frames: Sequence[Any]) -> list[Any]:
    """The frames in the opposite order."""
    return list(reversed(frames))


def middle_frame(frames: Sequence[Any]) -> list[Any]:
    """The frame in the middle of the clip at every moment."""
    return [frames[len(frames) // 2]] * len(frames)


@dataclass(frozen=True)
class ClipFrames:
    """Frames of one clip. Each is its pixels [tiles, 3, S, S] or its features [tokens, C], whichever there are.

    Attributes:
        grids: (rows, columns) of each frame's tiles.
        times: [F], continuous time of each frame in its clip, from 0 to 1.
        frames: one tensor a frame.
        encoded: whether they are features.
        key: under which the features are cached; empty: they are not.
    """

    grids: tuple[Grid, ...]
    times: Tensor
    frames: tuple[Tensor, ...]
    encoded: bool = False
    key: str = ""

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def from_tiles(cls, tiles: Sequence[Tiles], times: Sequence[float], *, key: str = "") -> "ClipFrames":
        return cls(tuple(t.grid for t in tiles), torch.tensor(times), tuple(t.pixels for t in tiles), key=key)

    def to(self, device: torch.device | str) -> "ClipFrames":
        return replace(self, times=self.times.to(device), frames=tuple(frame.to(device) for frame in self.frames))

    def tile_batch(self, start: int, end: int) -> TileBatch:
        """Some of the frames as pictures for the encoder."""
        return TileBatch(torch.cat(self.frames[start:end]), list(self.grids[start:end]))

    def features(self) -> ImageFeatures:
        """All frames, if they are encoded."""
        return ImageFeatures(torch.cat(self.frames), tuple(len(frame) for frame in self.frames))

    def with_features(self, features: ImageFeatures) -> "ClipFrames":
        """The same frames as the encoder's features."""
        return replace(self, frames=features.split(), encoded=True)

    def reordered(self, order: FrameOrder) -> "ClipFrames":
        """The control: at the same moments, the frames in that order."""
        return replace(self, grids=tuple(order(self.grids)), frames=tuple(order(self.frames)), key="")

    def blank(self, tile_size: int) -> "ClipFrames":
        """The control: as many frames with nothing on them."""
        empty = (torch.zeros(rows * columns, 3, tile_size, tile_size) for rows, columns in self.grids)
        return replace(self, frames=tuple(empty), encoded=False, key="")


@dataclass(frozen=True)
class ClipBatch:
    """Several clips, each for itself: they may have different numbers of frames, and some may be encoded."""

    clips: tuple[ClipFrames, ...]

    def to(self, device: torch.device | str) -> "ClipBatch":
        return ClipBatch(tuple(clip.to(device) for clip in self.clips))


def join_features(clips: Iterable[ImageFeatures]) -> ImageFeatures:
    """Features of all frames of all clips, end to end."""
    found = list(clips)
    if len(found) == 1:
        return found[0]  # joining would copy
    lengths = tuple(length for features in found for length in features.lengths)
    return ImageFeatures(torch.cat([features.tokens for features in found]), lengths)
