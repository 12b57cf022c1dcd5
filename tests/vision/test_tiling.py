"""Tiling: parity with the released model's image processor, order of rows and columns, and the extremes."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.mllama.image_processing_mllama import (
    get_all_supported_aspect_ratios,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from multimodal.errors import UserError
from vision.picture import open_picture
from vision.tiling import CLIP_MEAN, CLIP_STD, Augment, Tiling, batch_tiles, candidate_grids

SIDES = [
    1,
    2,
    13,
    27,
    28,
    29,
    41,
    55,
    56,
    57,
    80,
    84,
    85,
    99,
    111,
    112,
    113,
    150,
    168,
    224,
    300,
    777,
    1000,
    1921,
    10_000,
]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(width * 7 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def as_pixels(tiling: Tiling, tiles: torch.Tensor) -> torch.Tensor:
    """[N, 3, S, S] normalised -> 0..255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tiling.mean, tiling.std))
    return ((tiles * std + mean) * 255).round()


@pytest.mark.parametrize("tile_size", [28, 56, 448, 560])
@pytest.mark.parametrize("max_tiles", [1, 2, 4, 6])
def test_canvas_and_size_equal_the_released_rule(tile_size: int, max_tiles: int) -> None:
    tiling = Tiling(tile_size, max_tiles)
    assert len(SIDES) ** 2 >= 500
    for width in SIDES:
        for height in SIDES:
            canvas = get_optimal_tiled_canvas(height, width, max_tiles, tile_size)
            rows, columns = tiling.grid(width, height)
            assert (rows * tile_size, columns * tile_size) == tuple(canvas), (width, height)
            released = get_image_size_fit_to_canvas(height, width, int(canvas[0]), int(canvas[1]), tile_size)
            assert tiling.fit(width, height) == (released[1], released[0]), (width, height)


def test_grids_are_in_the_order_of_the_released_ids() -> None:
    assert candidate_grids(4) == get_all_supported_aspect_ratios(4)


def released_processor(tile_size: int) -> MllamaImageProcessorPil:
    return MllamaImageProcessorPil(
        size={"height": tile_size, "width": tile_size},
        max_image_tiles=4,
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    )


def assert_as_released(image: Image.Image, tile_size: int) -> None:
    """As many tiles in the same grid, and the same pixels, which are whole numbers up to 255 before they are normed."""
    released = released_processor(tile_size)(image, return_tensors="pt")
    tiling = Tiling(tile_size, 4)
    tiles = tiling.tile(open_picture(image))
    count = int(released["num_tiles"][0][0])
    assert candidate_grids(4)[int(released["aspect_ratio_ids"][0, 0]) - 1] == tiles.grid, image.size
    assert len(tiles.pixels) == count, image.size
    theirs = released["pixel_values"][0, 0, :count]
    torch.testing.assert_close(tiles.pixels, theirs, rtol=0, atol=1e-5)
    assert torch.equal(as_pixels(tiling, tiles.pixels), as_pixels(tiling, theirs)), image.size


def test_pixels_of_500_sizes_equal_the_released_processor() -> None:
    sides = sorted({*range(1, 20, 4), *range(21, 130, 8), 168, 224, 300, 401})
    sizes = [(width, height) for width in sides for height in sides]
    assert len(sizes) >= 500
    for size in sizes:
        assert_as_released(noise(*size), 28)


@pytest.mark.parametrize("tile_size", [448, 560])
@pytest.mark.parametrize("size", [(300, 200), (640, 480), (1280, 720), (900, 2000)])
def test_pixels_at_the_released_tile_sizes(tile_size: int, size: tuple[int, int]) -> None:
    assert_as_released(noise(*size), tile_size)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_other_colour_modes_are_those_of_the_released_processor(mode: str) -> None:
    image = noise(60, 40).convert("RGB" if mode == "LA" else mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(noise(60, 40).convert("L"))
    assert_as_released(image.convert(mode), 28)


@pytest.mark.parametrize("grid", [(1, 3), (3, 1), (1, 4), (2, 2)])
def test_coloured_bands_land_on_the_tiles_row_by_row(grid: tuple[int, int]) -> None:
    rows, columns = grid
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)][: rows * columns]
    image = Image.new("RGB", (columns * 20, rows * 20))
    for number, color in enumerate(colors):
        left, top = number % columns * 20, number // columns * 20
        image.paste(color, (left, top, left + 20, top + 20))
    tiling = Tiling(20, 4)
    tiles = tiling.tile(image)
    assert tiles.grid == grid and tiles.pixels.shape == (len(colors), 3, 20, 20)
    for tile, color in zip(as_pixels(tiling, tiles.pixels), colors, strict=True):
        assert torch.equal(tile, torch.tensor(color).float().view(3, 1, 1).expand(3, 20, 20))


def test_padding_is_black_right_and_below() -> None:
    tiling = Tiling(20, 4)
    pixels = as_pixels(tiling, tiling.tile(Image.new("RGB", (10, 5), "white")).pixels)
    assert pixels.shape == (1, 3, 20, 20)
    assert bool((pixels[0, :, :10] == 255).all()) and bool((pixels[0, :, 10:] == 0).all())  # 10 x 5 -> 20 x 10


@pytest.mark.parametrize(
    ("size", "grid"), [((10_000, 20), (1, 4)), ((20, 10_000), (4, 1)), ((1, 1), (1, 1)), ((3000, 1), (1, 4))]
)
def test_extreme_pictures(size: tuple[int, int], grid: tuple[int, int]) -> None:
    tiling = Tiling(28, 4)
    tiles = tiling.tile(Image.new("RGB", size, "white"))
    assert tiles.grid == grid and bool(torch.isfinite(tiles.pixels).all())
    assert bool((as_pixels(tiling, tiles.pixels)[:, :, 0, 0] == 255).all())  # every tile shows some of the picture


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000), tile=st.integers(1, 600), most=st.integers(1, 9))
def test_the_picture_fits_its_canvas_and_small_ones_are_not_enlarged_beyond_a_tile(
    width: int, height: int, tile: int, most: int
) -> None:
    tiling = Tiling(tile, most)
    rows, columns = tiling.grid(width, height)
    to_width, to_height = tiling.fit(width, height)
    assert rows * columns <= most
    assert 1 <= to_width <= columns * tile and 1 <= to_height <= rows * tile
    assert to_width <= max(width, tile) and to_height <= max(height, tile)


def test_stretch_fills_the_tile() -> None:
    tiling = Tiling(32, 1, stretch=True)
    tiles = tiling.tile(Image.new("RGB", (10, 3), "white"))
    assert tiles.grid == (1, 1) and bool((as_pixels(tiling, tiles.pixels) == 255).all())


def test_batch_holds_every_picture_as_it_is_alone() -> None:
    tiling = Tiling(16, 4)
    alone = [tiling.tile(noise(*size)) for size in ((16, 16), (64, 10), (32, 32), (5, 40))]
    batch = batch_tiles(alone)
    assert batch.lengths == [1, 4, 4, 3] and len(batch) == 4 and batch.tile_size == 16
    assert batch.grids == [tiles.grid for tiles in alone]
    for tiles, part in zip(alone, batch.pixels.split(batch.lengths), strict=True):
        assert torch.equal(tiles.pixels, part)
    moved = batch.to("cpu", torch.float64)
    assert moved.pixels.dtype == torch.float64 and moved.grids == batch.grids
    with pytest.raises(ValueError, match="tile sizes"):
        batch_tiles([tiling.tile(noise(4, 4)), Tiling(8).tile(noise(4, 4))])
    with pytest.raises(ValueError, match="0 pictures"):
        batch_tiles([])


def test_augmentation_repeats_with_its_seed_and_keeps_what_it_promises() -> None:
    image = noise(60, 40)
    augment = Augment(flip=True, crop_scale=(0.5, 0.9))
    first, again = ([augment(image, random.Random(seed)) for seed in range(40)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({one.tobytes() for one in first}) > 30
    for one in first:
        assert 0.48 <= one.width * one.height / 2400 <= 0.92
        assert abs(one.width / one.height - 1.5) < 0.06
    assert Augment()(image, random.Random(3)) is image
    flips = [np.array_equal(Augment(flip=True)(image, random.Random(s)), np.array(image)[:, ::-1]) for s in range(40)]
    assert 5 < sum(flips) < 35
    assert Augment(crop_scale=(0.1, 0.2))(noise(1, 1), random.Random(0)).size == (1, 1)


def test_wrong_settings_are_refused() -> None:
    for wrong in (lambda: Tiling(0), lambda: Tiling(28, 0), lambda: Tiling(28, std=(1, 0, 1))):
        with pytest.raises(UserError, match="expected"):
            wrong()
    for scale in ((0.0, 1.0), (0.9, 0.5), (0.5, 1.5)):
        with pytest.raises(UserError, match="crop_scale"):
            Augment(crop_scale=scale)
