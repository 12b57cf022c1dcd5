"""How the tokens of a batch lie in the image encoder: real tiles only, or padded as in the released model.

strict: a batch holds real tokens only, so nobody can see padding. reference: what the released code computes, and so
what its weights expect (spec A2.2, A2.6.5, A2.6.6): every picture has the full number of tiles, every tile a multiple
of 8 tokens, and only the pairs of two padding tokens are masked. Real tokens do see padding.

Legend: T tiles of the batch as laid out, M pictures, L tokens of a tile, P tokens of a picture, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vision.positions import tile_rows
from vision.tiling import TileBatch

Numerics = Literal["strict", "reference"]
TOKEN_MULTIPLE = 8
"""Of tokens in a tile of the released model. A square of patches and a class token never are one, so that it does not
matter that implementations differ there."""


@dataclass(frozen=True)
class TileLayout:
    """A batch as it goes through the encoder.

    Attributes:
        pixels: [T, 3, S, S].
        rows_T: row of each tile in the tile tables (`vision.positions`).
        counts: tiles of each picture.
        real_T: long, which of the tiles are real; None = all.
        pad_tokens: zero tokens at the end of each tile.
        mask_M1PP: True where a token may look; None = everywhere.
    """

    pixels: Tensor
    rows_T: Tensor
    counts: tuple[int, ...]
    real_T: Tensor | None = None
    pad_tokens: int = 0
    mask_M1PP: Tensor | None = None

    def pad(self, x_TLD: Tensor) -> Tensor:
        """With the padding tokens of each tile."""
        return F.pad(x_TLD, (0, 0, 0, self.pad_tokens)) if self.pad_tokens else x_TLD

    def real(self, x_TLD: Tensor) -> Tensor:
        """Without padding tokens and padding tiles."""
        if self.real_T is None:
            return x_TLD
        return x_TLD[self.real_T, : x_TLD.shape[1] - self.pad_tokens]


def lay_out(batch: TileBatch, *, max_tiles: int, tokens_per_tile: int, numerics: Numerics) -> TileLayout:
    """Lay a batch out for the encoder.

    Raises:
        UserError: a grid of more than `max_tiles` tiles.
    """
    padded = numerics == "reference"
    rows_T = torch.tensor(tile_rows(batch.grids, max_tiles, padded=padded), device=batch.pixels.device)
    if not padded:
        return TileLayout(batch.pixels, rows_T, tuple(batch.lengths))
    real_MN = torch.arange(max_tiles) < torch.tensor(batch.lengths)[:, None]
    real_T = (
        real_MN.flatten().nonzero()[:, 0].to(batch.pixels.device)
    )  # found on the CPU: a GPU would have to be waited for
    real_MN = real_MN.to(batch.pixels.device)
    pixels = batch.pixels.new_zeros(len(batch) * max_tiles, *batch.pixels.shape[1:])
    pixels[real_T] = batch.pixels
    pad_tokens = -tokens_per_tile % TOKEN_MULTIPLE
    real_MNL = F.pad(real_MN[:, :, None].expand(-1, -1, tokens_per_tile), (0, pad_tokens))
    real_MP = real_MNL.flatten(1)
    mask_M1PP = (real_MP[:, :, None] | real_MP[:, None, :])[:, None]
    return TileLayout(pixels, rows_T, (max_tiles,) * len(batch), real_T, pad_tokens, mask_M1PP)


def tiles_by_count(counts: Sequence[int]) -> dict[int, list[int]]:
    """Tile numbers of the batch by the tile count of their pictures: {count: [tile, ...]}, pictures in order."""
    groups: dict[int, list[int]] = {}
    start = 0
    for count in counts:
        groups.setdefault(count, []).extend(range(start, start + count))
        start += count
    return groups
