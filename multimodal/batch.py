"""Samples become batches: padded text, and media laid side by side without padding.

Legend: B rows, T tokens. One medium may serve several rows (five captions of one picture): it is encoded once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from multimodal.data.packing import IGNORE
from multimodal.memory import token_groups


@dataclass(frozen=True)
class Turn:
    """A prompt and its answer, as token ids; the answer is empty when the model is to write it.

    `media` gives, kind by kind, for each placeholder the position of its medium in the sample.
    """

    prompt: list[int]
    answer: list[int]
    media: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sample:
    """Prepared media (kind -> items such as tiles) and the turns about them."""

    media: Mapping[str, tuple[Any, ...]]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class MediaBatch:
    """The media of one kind and where they stand.

    `items` is what the modality's `collate` made of them. `rows[b]` lists (position in `items`, group) for row b;
    `token_group` is [B, T] as in `AdapterMemory`.
    """

    items: Any
    rows: tuple[tuple[tuple[int, int], ...], ...]
    token_group: Tensor

    def to(self, device: torch.device | str) -> "MediaBatch":
        return replace(self, items=self.items.to(device), token_group=self.token_group.to(device))


@dataclass(frozen=True)
class Batch:
    """`input_ids`, `attention_mask`, `targets` are [B, T] int64; padding is on the side asked for."""

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    media: Mapping[str, MediaBatch]

    def to(self, device: torch.device | str) -> "Batch":
        text = (t.to(device) for t in (self.input_ids, self.attention_mask, self.targets))
        return Batch(*text, media={kind: m.to(device) for kind, m in self.media.items()})


def length_groups(lengths: Sequence[int], *, least: int = 512) -> list[list[int]]:
    """Rows in groups of similar length, so that padding each group to its longest row wastes little.

    A group is cut in two where that saves at least `least` padded positions, about what another pass costs.
    """

    def cut(rows: list[int]) -> list[list[int]]:
        longest = lengths[rows[-1]]
        saved, at = max(((n * (longest - lengths[rows[n - 1]]), n) for n in range(1, len(rows))), default=(0, 0))
        return [rows] if saved < least else [*cut(rows[:at]), *cut(rows[at:])]

    return cut(sorted(range(len(lengths)), key=lambda row: lengths[row]))


def _pad(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> Tensor:
    longest = max(len(r) for r in rows)
    fill = [[value] * (longest - len(r)) for r in rows]
    return torch.tensor([[*f, *r] if left else [*r, *f] for r, f in zip(rows, fill, strict=True)], dtype=torch.long)


def _lay_out(kind: str, samples: Sequence[Sample], modality: Any, is_placeholder_BT: Tensor) -> MediaBatch | None:
    """Number the media of one kind through the batch and join each with its placeholder."""
    token_group = token_groups(is_placeholder_BT)
    group_of = [row[at].tolist() for row, at in zip(token_group, is_placeholder_BT, strict=True)]
    items: list[Any] = []
    rows: list[tuple[tuple[int, int], ...]] = []
    for sample in samples:
        own = sample.media.get(kind, ())
        for turn in sample.turns:
            positions, groups = turn.media.get(kind, ()), group_of[len(rows)]
            if len(positions) != len(groups) or not all(0 <= p < len(own) for p in positions):
                raise ValueError(f"{len(groups)} {kind} placeholders for the media {positions} of {len(own)}")
            rows.append(tuple((len(items) + p, group) for p, group in zip(positions, groups, strict=True)))
        items += own
    return MediaBatch(modality.collate(items), tuple(rows), token_group) if items else None


def collate(
    samples: Sequence[Sample],
    *,
    modalities: Mapping[str, Any],
    placeholder_ids: Mapping[str, int],
    pad_id: int,
    pad_left: bool = False,
) -> Batch:
    """Lay the turns of all samples out as rows.

    Args:
        modalities: kind -> modality, whose `collate(items)` makes one object with `.to(device)`.
        placeholder_ids: kind -> token id of its placeholder.
        pad_left: for generation; training pads on the right.

    Raises:
        ValueError: a turn has not as many media as placeholders, or names one that its sample does not have.
    """
    turns = [turn for sample in samples for turn in sample.turns]
    ids = [[*turn.prompt, *turn.answer] for turn in turns]
    # The token before each answer token predicts it; with an empty prompt nothing predicts the first.
    targets = [[*[IGNORE] * len(turn.prompt), *turn.answer, IGNORE][1:] for turn in turns]
    input_ids = _pad(ids, pad_id, left=pad_left)
    media = {
        kind: _lay_out(kind, samples, modality, input_ids == placeholder_ids[kind])
        for kind, modality in modalities.items()
    }
    return Batch(
        input_ids=input_ids,
        attention_mask=_pad([[1] * len(r) for r in ids], 0, left=pad_left),
        targets=_pad(targets, IGNORE, left=pad_left),
        media={kind: batch for kind, batch in media.items() if batch is not None},
    )
