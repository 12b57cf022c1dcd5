"""Pack documents of unequal length into rows without padding, so that no token of a row is wasted and none leaks.

Legend: B rows, T tokens of a row. A document sees itself alone (Llama 3 paper, section 3.2: attention is blocked across
documents packed in one sequence) and its positions start at zero.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class Document:
    """Token ids and, for each, whether predicting it counts in the loss."""

    ids: list[int]
    counts: list[bool]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.counts):
            raise ValueError(f"{len(self.ids)} ids but {len(self.counts)} loss flags")


@dataclass(frozen=True)
class PackedRows:
    """A batch of packed rows; every tensor is [B, T] int64.

    `targets` holds the next token of the same document where it counts and `IGNORE` elsewhere.
    """

    input_ids: Tensor
    targets: Tensor
    document: Tensor
    position: Tensor

    def to(self, device: torch.device | str) -> "PackedRows":
        return PackedRows(*(t.to(device) for t in (self.input_ids, self.targets, self.document, self.position)))

    def attention_mask(self) -> Tensor:
        """Bool [B, 1, T, T]: token t may attend to s when s <= t and both are of the same document."""
        same_BTT = self.document[:, :, None] == self.document[:, None, :]
        return same_BTT.tril().unsqueeze(1)


Row = list[Document]


def fill_row(draw: Callable[[random.Random], Document], rng: random.Random, *, length: int) -> Row:
    """Draw documents until they fill `length` tokens, or all but one; the last one is cut to what is left.

    Cutting keeps rows full. A cut document still teaches every token that it has.
    """
    row, left = [], length
    while left > 1:  # a document of one token has nothing to predict
        document = draw(rng)
        kept = Document(document.ids[:left], document.counts[:left])
        row.append(kept)
        left -= len(kept.ids)
    return row


def pack_rows(rows: Sequence[Row], *, length: int, pad_id: int) -> PackedRows:
    """Lay rows of documents out as tensors; what a row lacks in length is padding in a document of its own."""
    shape = (len(rows), length)
    input_ids = torch.full(shape, pad_id)
    targets = torch.full(shape, IGNORE)
    document = torch.full(shape, -1)
    position = torch.zeros(shape, dtype=torch.long)
    for b, row in enumerate(rows):
        start = 0
        for number, doc in enumerate(row):
            end = start + len(doc.ids)
            ids = torch.tensor(doc.ids)
            input_ids[b, start:end] = ids
            counts = torch.tensor(doc.counts[1:], dtype=torch.bool)
            targets[b, start : end - 1] = torch.where(counts, ids[1:], IGNORE)
            document[b, start:end] = number
            position[b, start:end] = torch.arange(end - start)
            start = end
    return PackedRows(input_ids, targets, document, position)
