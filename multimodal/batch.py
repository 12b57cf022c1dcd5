"""Samples become batches: padded text, and media laid side by side without padding.

Legend: B rows, T tokens. One medium may serve several rows (five captions of one picture): it is encoded once.
"""

import random
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

    `media` gives, kind by kind, for each placeholder the position of its medium in the sample. In the batch a medium
    may take several tokens.

    `teacher` is a prompt in text alone: if there is one, the answer is to be as likely, token by token, as after it
    (KL divergence), and not as likely as can be (cross-entropy).

    `misread` is the answer as the decoder reads it while it learns to write it, if it is to read other words than those
    (see `misread`).
    """

    prompt: list[int]
    answer: list[int]
    media: Mapping[str, tuple[int, ...]]
    teacher: list[int] | None = None
    misread: list[int] | None = None


def misread(turn: Turn, *, share: float, tokens: int, rng: random.Random) -> Turn:
    """The turn with a share of its answer's tokens, as they are read, swapped for any of the vocabulary; what is to be
    written stays.

    A caption that is foretold by the words before it is learnt without a look at the picture (word dropout, Bowman et
    al. 2016, arXiv 1511.06349; there the words are swapped for one unknown word, which frozen decoders do not have).

    Args:
        tokens: size of the vocabulary.
    """
    if not share:
        return turn
    return replace(turn, misread=[rng.randrange(tokens) if rng.random() < share else token for token in turn.answer])


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
    """`input_ids`, `attention_mask`, `targets` are [B, T] int64; padding is on the side asked for.

    `teacher` holds the answers of the rows `taught` (ascending) after prompts in text alone, with as many targets.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    media: Mapping[str, MediaBatch]
    taught: tuple[int, ...] = ()
    teacher: "Batch | None" = None

    def rows_with_media(self) -> set[int]:
        """The rows that any medium stands in."""
        return {row for media in self.media.values() for row, there in enumerate(media.rows) if there}

    def of_rows(self, rows: Sequence[int]) -> "Batch":
        """Some of the rows, without their teachers. Kinds of media of which they have none are gone."""
        media = {
            kind: replace(m, rows=tuple(m.rows[row] for row in rows), token_group=m.token_group[rows])
            for kind, m in self.media.items()
            if any(m.rows[row] for row in rows)
        }
        return Batch(self.input_ids[rows], self.attention_mask[rows], self.targets[rows], media)

    def to(self, device: torch.device | str) -> "Batch":
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            targets=self.targets.to(device),
            media={kind: m.to(device) for kind, m in self.media.items()},
            teacher=None if self.teacher is None else self.teacher.to(device),
        )


def length_groups(lengths: Sequence[int], *, least: int = 256) -> list[list[int]]:
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


@dataclass(frozen=True)
class _Row:
    """A turn as the decoder reads it: `ids`, in which the answer that is learnt stands behind so many of the prompt,
    and for each kind the columns of the first placeholder of every medium."""

    ids: list[int]
    prompt: int
    answer: list[int]
    columns: dict[str, list[int]]


def _spread(turn: Turn, sample: Sample, modalities: Mapping[str, Any], placeholder_ids: Mapping[str, int]) -> _Row:
    """Each placeholder of the prompt becomes the tokens that its medium takes."""
    kind_of = {placeholder_ids[kind]: kind for kind in modalities}
    ids: list[int] = []
    columns: dict[str, list[int]] = {kind: [] for kind in modalities}
    for token in turn.prompt:
        kind = kind_of.get(token)
        if kind is None:
            ids.append(token)
            continue
        own, positions, number = sample.media.get(kind, ()), turn.media.get(kind, ()), len(columns[kind])
        if number >= len(positions) or not 0 <= positions[number] < len(own):
            raise ValueError(f"{kind} placeholder {number + 1} for the media {positions} of {len(own)}")
        span = modalities[kind].span(own[positions[number]], token)
        columns[kind].append(len(ids) + span.index(token))
        ids += span
    for kind, positions in turn.media.items():
        found = len(columns.get(kind, ()))
        if found != len(positions):  # also of a kind that was unloaded since the turn was made
            raise ValueError(f"{found} {kind} placeholders for the media {positions}")
    read = turn.answer if turn.misread is None else turn.misread
    return _Row([*ids, *read], len(ids), turn.answer, columns)


def _lay_out(
    kind: str, samples: Sequence[Sample], rows: Sequence[_Row], modality: Any, is_placeholder_BT: Tensor, *, left: bool
) -> MediaBatch | None:
    """Number the media of one kind through the batch and join each with its placeholder."""
    token_group = token_groups(is_placeholder_BT)
    group_of = token_group.tolist()
    items: list[Any] = []
    joined: list[tuple[tuple[int, int], ...]] = []
    for sample in samples:
        for turn in sample.turns:
            row, groups = rows[len(joined)], group_of[len(joined)]
            start = len(groups) - len(row.ids) if left else 0
            found = zip(turn.media.get(kind, ()), row.columns[kind], strict=True)
            joined.append(tuple((len(items) + position, groups[start + column]) for position, column in found))
        items += sample.media.get(kind, ())
    return MediaBatch(modality.collate(items), tuple(joined), token_group) if items else None


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
        modalities: kind -> modality, whose `collate(items)` makes one object with `.to(device)`, and whose
            `span(item, placeholder)` gives the token ids, with the placeholder in them, that a medium takes.
        placeholder_ids: kind -> token id of its placeholder.
        pad_left: for generation; training pads on the right.

    Raises:
        ValueError: a turn has not as many media as placeholders, or names one that its sample does not have.
    """
    options: dict[str, Any] = {"modalities": modalities, "placeholder_ids": placeholder_ids, "pad_id": pad_id}
    rows = [_spread(turn, sample, modalities, placeholder_ids) for sample in samples for turn in sample.turns]
    # The token before each answer token predicts it; with an empty prompt nothing predicts the first.
    targets = [[*[IGNORE] * row.prompt, *row.answer, IGNORE][1:] for row in rows]
    input_ids = _pad([row.ids for row in rows], pad_id, left=pad_left)
    media = {
        kind: _lay_out(kind, samples, rows, modality, input_ids == placeholder_ids[kind], left=pad_left)
        for kind, modality in modalities.items()
    }
    turns = enumerate(turn for sample in samples for turn in sample.turns)
    taught = {row: Turn(turn.teacher, turn.answer, {}) for row, turn in turns if turn.teacher and turn.answer}
    return Batch(
        input_ids=input_ids,
        attention_mask=_pad([[1] * len(row.ids) for row in rows], 0, left=pad_left),
        targets=_pad(targets, IGNORE, left=pad_left),
        media={kind: batch for kind, batch in media.items() if batch is not None},
        taught=tuple(taught),
        teacher=collate([Sample({}, tuple(taught.values()))], pad_left=pad_left, **options) if taught else None,
    )
