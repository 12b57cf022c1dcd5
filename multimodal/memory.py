"""Media as the decoder sees it: keys and values per adapted layer, and which text position may look at which of them.

Visibility is one rule (Llama 3 paper, section 7.2 / spec A4.2): memory tokens and text positions carry a group number,
and a position sees exactly the memory tokens of its own group. Groups count from 1 within a row; 0 = nothing visible.

Legend: B batch, P prompt positions, T positions of one decoder call, S memory tokens, G key/value heads, K head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

Inserted = Mapping[int, Tensor]
"""Media that stand in the decoder's input embeddings (spec B4): token id -> [N, D], one for each such token of the
batch in reading order."""


@dataclass(frozen=True)
class Readers:
    """The part of a batch that sees anything: some rows (long [R], rising; None = all), from column `first` on.

    `unmasked`: all of that part sees every memory token of its row, so that attention needs no mask.
    """

    rows_R: Tensor | None
    first: int
    unmasked: bool


@dataclass(frozen=True)
class Visibility:
    """What the positions of one decoder call may see: `mask_BTS`, and `row_valid_BT` where that is anything at all.

    `readers` is the part of the batch outside which nobody sees anything; None = not worth knowing.
    """

    mask_BTS: Tensor
    row_valid_BT: Tensor
    readers: Readers | None = None


@dataclass(frozen=True)
class AdapterMemory:
    """What one adapter offers to the decoder.

    Attributes:
        keys: decoder layer index -> [B, G, S, K].
        values: likewise.
        memory_group: long [B, S], the group of each memory token; -1 = padding.
        token_group: long [B, P], the group each prompt position may look at; 0 = none. Positions after the prompt
            (generated tokens) inherit the last column.
        memory_column: long [B, S], the first column that sees each memory token; None = all columns of its group do.
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    memory_group: Tensor
    token_group: Tensor
    memory_column: Tensor | None = None

    def visible(self, columns_T: Tensor) -> Visibility:
        """Masks for the given columns of the sequence (long [T], counted from the start of the prompt)."""
        group_BT = self.token_group.index_select(1, columns_T.clamp(max=self.token_group.shape[1] - 1))
        group_BT1 = group_BT[:, :, None]
        mask_BTS = (group_BT1 == self.memory_group[:, None, :]) & (group_BT1 > 0)
        if self.memory_column is not None:
            mask_BTS = mask_BTS & (columns_T[:, None] >= self.memory_column[:, None, :])
        row_valid_BT = mask_BTS.any(-1)
        return Visibility(mask_BTS, row_valid_BT, _readers(mask_BTS, row_valid_BT))

    @cached_property
    def afterwards(self) -> Visibility:
        """Masks for any one column after the prompt; they are all alike, so that generated tokens share them."""
        column = torch.tensor([self.token_group.shape[1]], device=self.token_group.device)
        seen = self.visible(column)
        everything = not seen.mask_BTS.is_meta and bool(seen.mask_BTS.all())
        return replace(seen, readers=Readers(None, 0, unmasked=True)) if everything else seen

    def rows(self, rows_R: Tensor, length: int) -> "AdapterMemory":
        """Some of the rows (long [R]), with the first `length` columns of their sequences."""
        return AdapterMemory(
            {layer: k.index_select(0, rows_R) for layer, k in self.keys.items()},
            {layer: v.index_select(0, rows_R) for layer, v in self.values.items()},
            self.memory_group.index_select(0, rows_R),
            self.token_group.index_select(0, rows_R)[:, :length],
            None if self.memory_column is None else self.memory_column.index_select(0, rows_R),
        )

    def or_else(self, other: "AdapterMemory") -> "AdapterMemory":
        """This memory, and in rows that see nothing of it the other one, of the same adapter and batch."""
        sees_B = (self.token_group > 0).any(1, keepdim=True)
        return AdapterMemory(
            {layer: torch.cat([k, other.keys[layer]], dim=2) for layer, k in self.keys.items()},
            {layer: torch.cat([v, other.values[layer]], dim=2) for layer, v in self.values.items()},
            torch.cat([self.memory_group.masked_fill(~sees_B, -1), other.memory_group.masked_fill(sees_B, -1)], dim=1),
            torch.where(sees_B, self.token_group, other.token_group),
            _joined_columns(self, other),
        )

    def expand(self, n: int) -> "AdapterMemory":
        """Every row n times in a row."""
        return AdapterMemory(
            {layer: k.repeat_interleave(n, 0) for layer, k in self.keys.items()},
            {layer: v.repeat_interleave(n, 0) for layer, v in self.values.items()},
            self.memory_group.repeat_interleave(n, 0),
            self.token_group.repeat_interleave(n, 0),
            None if self.memory_column is None else self.memory_column.repeat_interleave(n, 0),
        )


def _joined_columns(*memories: AdapterMemory) -> Tensor | None:
    if all(memory.memory_column is None for memory in memories):
        return None
    columns = [torch.zeros_like(m.memory_group) if m.memory_column is None else m.memory_column for m in memories]
    return torch.cat(columns, dim=1)


@dataclass(frozen=True)
class CrossMemory:
    """The memory of every adapter that takes part in one batch, by adapter name."""

    by_adapter: dict[str, AdapterMemory]

    @property
    def batch_size(self) -> int:
        """Number of batch rows."""
        return next(iter(self.by_adapter.values())).token_group.shape[0]

    @property
    def prompt_length(self) -> int:
        """P: columns of the prompt."""
        return next(iter(self.by_adapter.values())).token_group.shape[1]

    def rows(self, rows_R: Tensor, length: int) -> "CrossMemory":
        """Some of the rows (long [R]), with the first `length` columns of their sequences."""
        return CrossMemory({name: memory.rows(rows_R, length) for name, memory in self.by_adapter.items()})

    def expand(self, n: int) -> "CrossMemory":
        """Every row n times in a row, as beams or several samples per prompt need it."""
        return CrossMemory({name: memory.expand(n) for name, memory in self.by_adapter.items()})


def _readers(mask_BTS: Tensor, row_valid_BT: Tensor) -> Readers | None:
    """None where that is everything, for a single column (a generated token), and where nothing can be looked at: in a
    graph, and on the meta device."""
    if row_valid_BT.shape[1] == 1 or row_valid_BT.is_meta or torch.compiler.is_compiling():
        return None
    reads_B, first = row_valid_BT.any(1), row_valid_BT.any(0).long().argmax()
    part_BT = reads_B[:, None] & (torch.arange(row_valid_BT.shape[1], device=first.device) >= first)
    unmasked = (mask_BTS.all(-1) == part_BT).all()
    *reads, start, fully = torch.cat([reads_B.long(), torch.stack([first, unmasked.long()])]).tolist()
    rows = [row for row, there in enumerate(reads) if there]
    if len(rows) == len(reads):
        return Readers(None, start, bool(fully)) if start or fully else None
    return Readers(torch.tensor(rows, dtype=torch.long, device=first.device), start, bool(fully))


def token_groups(is_placeholder_BP: Tensor) -> Tensor:
    """The group that each prompt position may look at, long [B, P], from where the media placeholders are.

    Consecutive placeholders open one group together; they and the text after them see it until the next group begins.
    Text before the first placeholder gets 0.

    Args:
        is_placeholder_BP: bool, True at media placeholders.
    """
    starts_BP = is_placeholder_BP.clone()
    starts_BP[:, 1:] &= ~is_placeholder_BP[:, :-1]
    return starts_BP.long().cumsum(1)


def inserted_rows(inserted: Inserted, input_ids_BT: Tensor, rows_R: Tensor) -> Inserted:
    """What of `inserted` stands in some of the rows (long [R]), in their order."""
    picked = {}
    for token, embeddings_ND in inserted.items():
        at_BT = input_ids_BT == token
        number_BT = at_BT.flatten().cumsum(0).view_as(input_ids_BT) - 1
        picked[token] = embeddings_ND[number_BT[rows_R][at_BT[rows_R]]]
    return picked
