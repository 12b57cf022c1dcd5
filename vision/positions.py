"""Where a token stands: its place in the tile (positions), and the tile's place in the picture (tile embeddings).

A picture is a grid of (rows, cols) tiles. Every tile of every allowed grid owns one row of a table ("tile row"): with
at most four tiles there are 8 grids and 23 tile rows. All tile-aware tables sit behind tanh gates that start at zero,
so a new encoder is a plain ViT on each tile (Llama 3 released model; spec A2.2, A2.4).

Padded tables have the rows of the released model: `max_tiles` for every grid, those of padding tiles among them, and
before them as many for "no picture". Rows that no tile of a picture owns start at zero.

Legend: T tiles of the batch, R tile rows, L tokens of a tile (class token first, then the patch grid), D width.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.errors import UserError
from multimodal.layers import TanhGate
from vision.tiling import Grid, candidate_grids


def tile_row_count(max_tiles: int, *, padded: bool = False) -> int:
    """Rows of a tile table, one for each tile of each allowed grid."""
    if padded:
        return (len(candidate_grids(max_tiles)) + 1) * max_tiles
    return sum(rows * cols for rows, cols in candidate_grids(max_tiles))


@functools.cache
def first_tile_rows(max_tiles: int, *, padded: bool = False) -> dict[Grid, int]:
    """The tile row of the first tile of every allowed grid."""
    grids = candidate_grids(max_tiles)
    if padded:
        return {grid: number * max_tiles for number, grid in enumerate(grids, start=1)}
    sizes = [rows * cols for rows, cols in grids]
    return dict(zip(grids, itertools.accumulate(sizes[:-1], initial=0), strict=True))


def tile_rows(grids: Sequence[Grid], max_tiles: int, *, padded: bool = False) -> list[int]:
    """Tile row of every tile of a batch, in batch order (tiles of a picture run row by row).

    Args:
        padded: of padded tables, `max_tiles` rows for each picture.

    Raises:
        UserError: a grid holds more than `max_tiles` tiles, or none.
    """
    first = first_tile_rows(max_tiles, padded=padded)
    rows: list[int] = []
    for height, width in grids:
        start = first.get((height, width))
        if start is None:
            raise UserError(
                f"image tiling: found a grid of {height} x {width} tiles, the encoder takes 1 to {max_tiles} tiles"
            )
        rows.extend(range(start, start + (max_tiles if padded else height * width)))
    return rows


def sine_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of the row and of the column of each patch [side * side, width], periods from two tiles down
    to two patches; what `width` has beyond a multiple of 4 is 0.
    """
    waves = width // 4
    rates = math.pi / side * side ** (torch.arange(waves) / max(1, waves - 1))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # side, width // 2
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], dim=2)
    return F.pad(grid.flatten(0, 1), (0, width - 4 * waves))


def owned_rows(max_tiles: int, *, padded: bool = False) -> list[int]:
    """Rows that belong to a tile of a picture: all but those of padding."""
    first = first_tile_rows(max_tiles, padded=padded)
    return [start + tile for (rows, cols), start in first.items() for tile in range(rows * cols)]


def resize_positions(table_RLD: Tensor, side: int) -> Tensor:
    """Resize the patch grid of position tables to `side` x `side`, bilinear with aligned corners; the class row is
    kept (spec A2.4).
    """
    class_R1D, grid_RND = table_RLD[:, :1], table_RLD[:, 1:]
    old = round(grid_RND.shape[1] ** 0.5)
    if old == side:
        return table_RLD.clone()
    grid_RDhw = grid_RND.unflatten(1, (old, old)).permute(0, 3, 1, 2).float()
    grid_RDhw = F.interpolate(grid_RDhw, size=(side, side), mode="bilinear", align_corners=True)
    return torch.cat([class_R1D, grid_RDhw.permute(0, 2, 3, 1).flatten(1, 2).to(table_RLD.dtype)], dim=1)


class GatedTileEmbedding(nn.Module):
    """x + tanh(gate) * table[tile row], the same vector for every token of a tile; the identity at the start (spec
    A2.2).
    """

    def __init__(self, *, max_tiles: int, width: int, padded: bool = False) -> None:
        super().__init__()
        owned = owned_rows(max_tiles, padded=padded)
        table_RD = torch.zeros(tile_row_count(max_tiles, padded=padded), width)
        table_RD[owned] = torch.randn(len(owned), width) * width**-0.5
        self.table_RD = nn.Parameter(table_RD)
        self.gate = TanhGate()

    def forward(self, x_TLD: Tensor, rows_T: Tensor) -> Tensor:
        return x_TLD + self.gate(F.embedding(rows_T, self.table_RD)).unsqueeze(1)


class GatedPositions(nn.Module):
    """(1 - tanh(gate)) * local + tanh(gate) * tile-specific positions (spec A2.2); the local table alone at the start.

    `side`: patches along one edge of a tile. The tile-specific table starts as the local one stretched over the whole
    picture.
    """

    def __init__(self, *, max_tiles: int, side: int, width: int, padded: bool = False) -> None:
        super().__init__()
        self.max_tiles = max_tiles
        self.padded = padded
        self.side = side
        length = side * side + 1
        class_1D = torch.randn(1, width) * width**-0.5
        # Small random vectors stay a sixth of what the stem says of a patch and fade layer by layer (Beyer et al. 2022,
        # "Better plain ViT baselines for ImageNet-1k", also start from sines). Whole sines are larger than the stem.
        self.local_LD = nn.Parameter(torch.cat([class_1D, 0.5 * sine_positions(side, width)]))
        self.tiled_RLD = nn.Parameter(torch.zeros(tile_row_count(max_tiles, padded=padded), length, width))
        self.gate = TanhGate()
        self.stretch_local_()

    @torch.no_grad()
    def stretch_local_(self) -> None:
        """Set the tile-specific table to the local table stretched over each tile grid (spec A2.4).

        Worth calling again after a pre-training that moved the local table alone.
        """
        side, local_1LD = self.side, self.local_LD.unsqueeze(0)
        patches_1Dhw = local_1LD[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        for (rows, cols), first in first_tile_rows(self.max_tiles, padded=self.padded).items():
            canvas = F.interpolate(patches_1Dhw, size=(rows * side, cols * side), mode="bilinear", align_corners=True)[
                0
            ]
            tiles = canvas.unflatten(2, (cols, side)).unflatten(1, (rows, side))  # D, rows, side, cols, side
            tiles = tiles.permute(1, 3, 2, 4, 0).reshape(rows * cols, side * side, -1)
            self.tiled_RLD[first : first + rows * cols, 1:] = tiles.to(self.tiled_RLD.dtype)
        self.tiled_RLD[owned_rows(self.max_tiles, padded=self.padded), 0] = self.local_LD[0]

    def resized(self, side: int) -> "GatedPositions":
        """The same positions for tiles of `side` x `side` patches; an equal copy where the side is unchanged."""
        new = GatedPositions(max_tiles=self.max_tiles, side=side, width=self.local_LD.shape[1], padded=self.padded)
        new.local_LD = _like(self.local_LD, resize_positions(self.local_LD.detach().unsqueeze(0), side)[0])
        new.tiled_RLD = _like(self.tiled_RLD, resize_positions(self.tiled_RLD.detach(), side))
        new.gate.load_state_dict(self.gate.state_dict())
        new.gate.to(self.local_LD.device)
        return new.train(self.training)

    def forward(self, rows_T: Tensor) -> Tensor:
        """Position vectors [T, L, D] for tiles at `rows_T`."""
        tiled_TLD = F.embedding(rows_T, self.tiled_RLD.flatten(1)).unflatten(1, self.local_LD.shape)
        return self.local_LD + self.gate(tiled_TLD - self.local_LD)


def _like(old: nn.Parameter, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=old.requires_grad)
