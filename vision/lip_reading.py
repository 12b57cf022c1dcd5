"""Lip reading as a first task of an image encoder: which word is spoken in each frame.

Labels of whole clips do not teach an encoder to read lips from nothing; one word label a frame does. A recurrent head
looks at the frames before and after, and is thrown away.

Legend: B clips, F frames of the longest clip, N frames of all clips, C feature width, V labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.data.grid_grammar import SLOTS
from vision.encoder import ImageEncoder
from vision.tiling import TileBatch, Tiles, batch_tiles

SILENCE = "sil"
WORDS = (SILENCE, *(word for words in SLOTS.values() for word in words))
"""Labels of a frame; a letter of the alphabet is told from the word "at" by its slot."""


@dataclass(frozen=True)
class LabelledFrames:
    """Frames of a clip, the label of each as an index of `WORDS`, and the clip's six words."""

    tiles: tuple[Tiles, ...]
    labels: tuple[int, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class LabelledBatch:
    """Frames of several clips, end to end, with one label each [N]; `lengths` holds the frames of each clip."""

    tiles: TileBatch
    labels: Tensor
    lengths: tuple[int, ...]
    words: tuple[tuple[str, ...], ...]

    def to(self, device: torch.device | str) -> "LabelledBatch":
        return LabelledBatch(self.tiles.to(device), self.labels.to(device), self.lengths, self.words)


def collate_frames(clips: Sequence[LabelledFrames]) -> LabelledBatch:
    return LabelledBatch(
        batch_tiles([tiles for clip in clips for tiles in clip.tiles]),
        torch.tensor([label for clip in clips for label in clip.labels]),
        tuple(len(clip.tiles) for clip in clips),
        tuple(clip.words for clip in clips),
    )


def frame_labels(seconds: Sequence[float], spoken: Sequence[tuple[str, float, float]]) -> tuple[int, ...]:
    """The word that is spoken at each moment, as an index of `WORDS`; between words there is silence.

    Args:
        seconds: moments.
        spoken: (word, start, end) in seconds.
    """
    return tuple(WORDS.index(next((w for w, start, end in spoken if start <= at < end), SILENCE)) for at in seconds)


class FrameWordTask(nn.Module):
    """An image encoder with a head that names the word of each frame.

    Args:
        encoder: to be trained.
        width: of the recurrent head, in each direction.
    """

    def __init__(self, encoder: ImageEncoder, *, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.feature_dim)
        self.proj = nn.Linear(encoder.feature_dim, width)
        self.context = nn.GRU(width, width, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width, len(WORDS))

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        named = list(self.named_parameters())
        return {
            "encoder": [pair for pair in named if pair[0].startswith("encoder.")],
            "head": [pair for pair in named if not pair[0].startswith("encoder.")],
        }

    def forward(self, batch: LabelledBatch) -> Tensor:
        """Logits [N, V] of every frame; a clip is read by itself, whatever else is in the batch."""
        features = self.encoder(batch.tiles)
        x_NC = torch.stack([tokens.mean(0) for tokens in features.split()])
        clips = self.proj(self.norm(x_NC)).float().split(batch.lengths)
        packed = nn.utils.rnn.pack_sequence(list(clips), enforce_sorted=False)
        with torch.autocast(x_NC.device.type, enabled=False):  # recurrent layers know no mixed precision on a CPU
            context, _ = self.context(packed)
        context_BFC, lengths_B = nn.utils.rnn.pad_packed_sequence(context, batch_first=True)
        return self.out(torch.cat([row[:length] for row, length in zip(context_BFC, lengths_B, strict=True)]))

    def loss(self, batch: LabelledBatch) -> tuple[Tensor, int]:
        """Cross-entropy summed over the frames, and their number."""
        return F.cross_entropy(self(batch).float(), batch.labels, reduction="sum"), len(batch.labels)


def slot_accuracy(logits_NV: Tensor, batch: LabelledBatch) -> dict[str, list[bool]]:
    """For each of the six slots, clip by clip, whether the word of that slot with the highest probability, summed over
    the frames, is the one that is spoken."""
    found: dict[str, list[bool]] = {slot: [] for slot in SLOTS}
    for frames_FV, words in zip(logits_NV.float().softmax(-1).split(batch.lengths), batch.words, strict=True):
        total_V = frames_FV.sum(0)
        for (slot, options), word in zip(SLOTS.items(), words, strict=True):
            best = max(options, key=lambda option: float(total_V[WORDS.index(option)]))
            found[slot].append(best == word)
    return found
