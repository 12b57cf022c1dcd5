"""Tile and position tables: who owns which row, what the gates do, what resizing keeps."""

import pytest
import torch

from multimodal.errors import UserError
from vision.positions import (
    GatedPositions,
    GatedTileEmbedding,
    resize_positions,
    sine_positions,
    tile_row_count,
    tile_rows,
)

GRIDS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]


def test_each_tile_of_each_grid_owns_a_row() -> None:
    rows = tile_rows(GRIDS, 4)
    assert sorted(rows) == list(range(tile_row_count(4))) and len(rows) == 23
    assert tile_rows([(2, 2), (2, 1)], 4) == tile_rows([(2, 2)], 4) + tile_rows([(2, 1)], 4)


@pytest.mark.parametrize("grid", [(2, 3), (5, 1), (0, 1)])
def test_unknown_grid_is_a_user_error(grid: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"{grid[0]} x {grid[1]}"):
        tile_rows([grid], 4)


def test_gates_start_closed_and_open() -> None:
    torch.manual_seed(0)
    positions, embedding = GatedPositions(max_tiles=4, side=3, width=8), GatedTileEmbedding(max_tiles=4, width=8)
    rows = torch.tensor(tile_rows([(2, 2), (1, 1)], 4))
    x = torch.randn(5, 10, 8)
    assert torch.equal(embedding(x, rows), x)
    assert torch.equal(positions(rows), positions.local_LD.expand(5, -1, -1))
    with torch.no_grad():
        positions.gate.weight.fill_(20.0)  # tanh = 1: the tile-specific table alone
        embedding.gate.weight.fill_(20.0)
    torch.testing.assert_close(positions(rows), positions.tiled_RLD[rows])
    torch.testing.assert_close(embedding(x, rows), x + embedding.table_RD[rows].unsqueeze(1))


@pytest.mark.parametrize(("side", "width"), [(8, 128), (4, 32), (6, 30)])
def test_a_patch_can_be_told_from_its_first_position(side: int, width: int) -> None:
    """No two alike, near ones nearer, rows apart from columns, and of the size of what they are added to."""
    grid = sine_positions(side, width).unflatten(0, (side, side))
    points = grid.flatten(0, 1)
    distances = torch.cdist(points, points)
    assert distances.fill_diagonal_(9.0).min() > 0.1
    assert (grid[0, 0] - grid[0, 1]).norm() < (grid[0, 0] - grid[0, side - 1]).norm()
    half = width // 4 * 2
    assert torch.equal(grid[..., :half], grid[:, :1, :half].expand(-1, side, -1))
    assert torch.equal(grid[..., half : 2 * half], grid[:1, :, half : 2 * half].expand(side, -1, -1))
    assert points[:, : 2 * half].square().mean().item() == pytest.approx(0.5, abs=1e-3)
    torch.testing.assert_close(GatedPositions(max_tiles=4, side=side, width=width).local_LD[1:], 0.5 * points)


def test_tiled_table_is_the_local_one_stretched_over_the_canvas() -> None:
    """A ramp from 0 to 1 down the tile becomes a ramp from 0 to 1 down the canvas, whatever the grid."""
    positions = GatedPositions(max_tiles=4, side=3, width=1)
    ramp = torch.linspace(0, 1, 3).view(3, 1).expand(3, 3).reshape(9, 1)
    with torch.no_grad():
        positions.local_LD.copy_(torch.cat([torch.tensor([[7.0]]), ramp]))
    positions.stretch_local_()
    for rows, cols in GRIDS:
        tiles = positions.tiled_RLD[tile_rows([(rows, cols)], 4)].detach()
        assert torch.equal(tiles[:, 0], torch.full((rows * cols, 1), 7.0))
        canvas = tiles[:, 1:, 0].view(rows, cols, 3, 3).permute(0, 2, 1, 3).reshape(rows * 3, cols * 3)
        torch.testing.assert_close(canvas, torch.linspace(0, 1, rows * 3).view(-1, 1).expand(-1, cols * 3))


def test_resize_keeps_class_row_corners_and_equal_size() -> None:
    torch.manual_seed(0)
    table = torch.randn(3, 17, 5)
    assert torch.equal(resize_positions(table, 4), table)
    bigger = resize_positions(table, 7)
    assert bigger.shape == (3, 50, 5) and torch.equal(bigger[:, 0], table[:, 0])
    old, new = table[:, 1:].view(3, 4, 4, 5), bigger[:, 1:].view(3, 7, 7, 5)
    torch.testing.assert_close(new[:, ::2, ::2], old)  # 4 points of 7 fall on the old grid when the corners are aligned


def test_resized_positions_keep_gate_and_frozen_flags() -> None:
    positions = GatedPositions(max_tiles=2, side=2, width=4)
    positions.local_LD.requires_grad_(False)
    with torch.no_grad():
        positions.gate.weight.fill_(0.3)
    new = positions.resized(4)
    assert new.local_LD.shape == (17, 4) and new.tiled_RLD.shape == (tile_row_count(2), 17, 4)
    assert torch.equal(new.gate.weight, positions.gate.weight)
    assert not new.local_LD.requires_grad and new.tiled_RLD.requires_grad
    new.local_LD.data.zero_()
    assert positions.local_LD.abs().sum() > 0
