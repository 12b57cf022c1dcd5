"""Attention maps: tiles come back together as they were cut, padding goes, and the light falls where the weight is."""

import numpy as np
import pytest
import torch
from PIL import Image

from vision.attention_map import attention_heat, draw_attention, merge_tokens
from vision.tiling import Tiling


@pytest.mark.parametrize("before", [0, 1, 5])
def test_heat_puts_every_patch_back_where_the_tiling_cut_it(before: int) -> None:
    tiling, p = Tiling(tile_size=8, max_tiles=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), 4
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for width, height in ((16, 16), (32, 8), (8, 24)):
        picture = Image.fromarray(np.resize(noise, (height, width, 3)))
        tiles = tiling.tile(picture)
        assert tiles.grid == (height // 8, width // 8)
        patches = tiles.pixels.mean(1).unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2)).flatten(1)  # [n, p * p]
        tokens = torch.cat([torch.full((len(patches), before), 99.0), patches], dim=1).flatten()[None]
        heat = attention_heat(tokens, grid=tiles.grid, patches_per_side=p, before=before)[0]
        canvas = torch.from_numpy(np.array(picture)).float().mean(-1) / 255
        torch.testing.assert_close(heat, canvas.unfold(0, 2, 2).unfold(1, 2, 2).mean((-1, -2)))


def test_heat_refuses_weights_of_another_grid() -> None:
    with pytest.raises(ValueError, match=r"weights over 17 tokens, expected 34 for grid \(1, 2\)"):
        attention_heat(torch.zeros(3, 17), grid=(1, 2), patches_per_side=4)


def test_subwords_merge_to_the_mean_of_their_rows() -> None:
    weights = torch.rand(6, 5)
    merged, rows = merge_tokens(["a", " d", "og", " run", "s", "."], weights)
    assert merged == ["a", "dog", "runs."]
    torch.testing.assert_close(rows, torch.stack([weights[0], weights[1:3].mean(0), weights[3:].mean(0)]))


def test_merging_nothing_and_unequal_lengths() -> None:
    assert merge_tokens([], torch.zeros(0, 4))[0] == []
    with pytest.raises(ValueError, match="1 pieces for 2 rows"):
        merge_tokens(["a"], torch.zeros(2, 4))


def _panels(sheet: Image.Image, count: int, columns: int) -> list[np.ndarray]:
    grey = np.asarray(sheet.convert("L"), dtype=float)
    rows = -(-count // columns)
    height, width = grey.shape[0] // rows, grey.shape[1] // columns
    return [
        grey[r * height : (r + 1) * height - 30, c * width : (c + 1) * width]
        for r, c in (divmod(i, columns) for i in range(count))
    ]


def test_light_falls_on_the_patch_with_the_weight() -> None:
    heat = torch.zeros(4, 4, 4)
    corners = [(0, 0), (0, 3), (3, 0), (3, 3)]
    for index, (row, column) in enumerate(corners):
        heat[index, row, column] = 1.0
    picture = Image.new("RGB", (64, 64), (150, 150, 150))
    sheet = draw_attention(picture, ["a", "b", "c", "d"], heat, columns=4)
    for panel, (row, column) in zip(_panels(sheet, 4, 4), corners, strict=True):
        inner = np.where(panel > 250, 0, panel)  # without the white margin
        y, x = np.unravel_index(inner.argmax(), inner.shape)
        assert (y > panel.shape[0] / 2, x > panel.shape[1] / 2) == (row == 3, column == 3)


def test_padding_is_cropped_away() -> None:
    picture = Image.new("RGB", (80, 40), (150, 150, 150))
    heat = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    cropped = draw_attention(picture, ["x"], heat[:, :3], (1.0, 1.0))
    padded = heat.clone()
    padded[:, 3:] = 0.0
    whole = draw_attention(picture, ["x"], padded, (1.0, 0.5))
    elsewhere = draw_attention(picture, ["x"], padded, (1.0, 1.0))
    assert np.abs(np.asarray(whole, float) - np.asarray(cropped, float)).mean() < 2
    assert np.abs(np.asarray(elsewhere, float) - np.asarray(cropped, float)).mean() > 5


def test_any_number_of_words_and_any_shape_of_picture_draws() -> None:
    for count, size in ((1, (10, 300)), (7, (300, 10)), (13, (1, 1))):
        sheet = draw_attention(Image.new("L", size), ["word"] * count, torch.zeros(count, 2, 2))
        assert sheet.mode == "RGB" and min(sheet.size) > 20
    with pytest.raises(ValueError, match="2 words for 3 maps"):
        draw_attention(Image.new("RGB", (8, 8)), ["a", "b"], torch.zeros(3, 2, 2))
