"""Padded frames of several utterances: their lengths, their masks, and how lengths shrink.

Legend: B utterances, T frames, C channels.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Length = TypeVar("Length", int, Tensor)


def ceil_divide(length: Length, factor: int) -> Length:
    """Frames left of `length` frames when every `factor`, the last ones perhaps incomplete, become one."""
    return -(-length // factor)


@dataclass(frozen=True)
class SpeechBatch:
    """Several utterances side by side: features [B, T, C] or waveforms [B, S], and the frames or samples of each [B]
    (int64); what follows is padding."""

    padded: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str) -> "SpeechBatch":
        return SpeechBatch(self.padded.to(device), self.lengths.to(device))


def pad_batch(utterances: list[Tensor]) -> SpeechBatch:
    """A batch of utterances [T, C] or [S] of any lengths, zeros behind the shorter ones."""
    lengths_B = torch.tensor([len(x_TC) for x_TC in utterances])
    return SpeechBatch(torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True), lengths_B)


def trim(x_BTC: Tensor, lengths_B: Tensor) -> Tensor:
    """Cut off what lies behind the longest utterance and put zeros behind the others, whatever stood there.

    Raises:
        ValueError: a length below 1 or beyond the frames.
    """
    shortest, longest = (int(length) for length in torch.stack(lengths_B.aminmax()).tolist())
    if not 1 <= shortest <= longest <= x_BTC.shape[1]:
        raise ValueError(f"lengths from {shortest} to {longest}, expected 1 to {x_BTC.shape[1]} frames")
    x_BTC = x_BTC[:, :longest]
    return x_BTC if shortest == longest else x_BTC.masked_fill(~frame_mask(lengths_B, longest)[..., None], 0)


def frame_mask(lengths_B: Tensor, frames: int) -> Tensor:
    """bool [B, T], True on the frames of the utterance."""
    return torch.arange(frames, device=lengths_B.device) < lengths_B[:, None]


def padding_mask(lengths_B: Tensor, frames: int) -> Tensor | None:
    """`frame_mask`, or None where nothing is padding, so that attention can take its fast path."""
    return None if bool((lengths_B == frames).all()) else frame_mask(lengths_B, frames)


def stack_frames(x_BTC: Tensor, stack: int) -> Tensor:
    """Every `stack` frames side by side, earliest first: [B, ceil(T / stack), stack * C]; zeros fill up the last."""
    x_BTC = F.pad(x_BTC, (0, 0, 0, -x_BTC.shape[1] % stack))
    return x_BTC.unflatten(1, (-1, stack)).flatten(2)
