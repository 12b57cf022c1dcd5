"""Pictures -> tiles: resize onto the canvas of at most `max_tiles` square tiles that suits them, cut, normalise.

Llama 3 paper, section 7.2 / spec A3, with the canvas rule of the released model. Unlike there, no picture is padded to
the full number of tiles: a batch holds real tiles only.

Tensor legend: N tiles (of one picture, or of all pictures of a batch, one after the other), 3 colours, S tile side in
pixels. A grid is always (rows, columns).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multimodal.errors import UserError

Grid = tuple[int, int]
RGB = tuple[float, float, float]

CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Tiles:
    """One picture: pixels [N, 3, S, S] row by row, grid (rows, columns) with rows * columns = N."""

    pixels: Tensor
    grid: Grid


@dataclass(frozen=True)
class TileBatch:
    """Several pictures: pixels [sum N, 3, S, S], one grid per picture."""

    pixels: Tensor
    grids: list[Grid]

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.grids)

    @property
    def lengths(self) -> list[int]:
        """Tiles of each picture."""
        return [rows * columns for rows, columns in self.grids]

    @property
    def tile_size(self) -> int:
        return self.pixels.shape[-1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TileBatch":
        return replace(self, pixels=self.pixels.to(device=device, dtype=dtype, non_blocking=True))

    def pin_memory(self) -> "TileBatch":
        return replace(self, pixels=self.pixels.pin_memory())


def batch_tiles(pictures: Sequence[Tiles]) -> TileBatch:
    """Join pictures of one tile size. Nothing is padded.

    Raises:
        ValueError: no picture, or different tile sizes.
    """
    sizes = {picture.pixels.shape[-1] for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(
            f"cannot batch {len(pictures)} pictures with tile sizes {sorted(sizes)}: expected one tile size"
        )
    return TileBatch(torch.cat([picture.pixels for picture in pictures]), [picture.grid for picture in pictures])


def candidate_grids(max_tiles: int) -> list[Grid]:
    """Every (rows, columns) of at most `max_tiles` tiles, in the order of the released model's aspect-ratio ids."""
    sides = range(1, max_tiles + 1)
    return [(rows, columns) for rows in sides for columns in sides if rows * columns <= max_tiles]


@dataclass(frozen=True)
class Tiling:
    """How pictures become tiles.

    Attributes:
        tile_size: side of a tile, in pixels.
        max_tiles: most tiles a picture may take.
        stretch: fill the canvas and ignore the aspect ratio (for data sets that were squashed to squares).
        mean, std: per colour, on the 0..1 scale.
    """

    tile_size: int = 224
    max_tiles: int = 4
    stretch: bool = False
    mean: RGB = CLIP_MEAN
    std: RGB = CLIP_STD

    def __post_init__(self) -> None:
        if self.tile_size < 1 or self.max_tiles < 1:
            raise UserError(
                f"tile_size {self.tile_size}, max_tiles {self.max_tiles}: expected whole numbers of at least 1"
            )
        if min(self.std) <= 0:
            raise UserError(f"pixel std {self.std}: expected numbers above 0")

    def grid(self, width: int, height: int) -> Grid:
        """Canvas of a picture: the least enlargement that fits, else the least reduction; ties go to fewer tiles."""

        def cost(grid: Grid) -> tuple[bool, float, int]:
            rows, columns = grid
            scale = min(rows * self.tile_size / height, columns * self.tile_size / width)
            return (scale < 1, scale if scale >= 1 else -scale, rows * columns)

        return min(candidate_grids(self.max_tiles), key=cost)

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that a picture is resized to on its canvas.

        The aspect ratio is kept. A picture smaller than a tile is enlarged until it touches the tile, never further.
        """
        rows, columns = self.grid(width, height)
        if self.stretch:
            return columns * self.tile_size, rows * self.tile_size
        to_width = min(max(width, self.tile_size), columns * self.tile_size)
        to_height = min(max(height, self.tile_size), rows * self.tile_size)
        by_width, by_height = to_width / width, to_height / height
        if by_width < by_height:
            return to_width, min(max(math.floor(height * by_width), 1), to_height)
        return min(max(math.floor(width * by_height), 1), to_width), to_height

    def tile(self, image: Image.Image) -> Tiles:
        """Resize (bilinear, antialiased), put at the top left of a black canvas, cut into tiles, normalise.

        Args:
            image: an RGB picture, as `open_picture` returns it.
        """
        rows, columns = self.grid(*image.size)
        size = self.fit(*image.size)
        canvas = Image.new("RGB", (columns * self.tile_size, rows * self.tile_size))
        canvas.paste(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))
        mean, std = (255 * torch.tensor(values) for values in (self.mean, self.std))
        pixels = (torch.from_numpy(np.array(canvas)).float() - mean) / std
        tiles = pixels.view(rows, self.tile_size, columns, self.tile_size, 3).permute(0, 2, 4, 1, 3)
        return Tiles(tiles.reshape(-1, 3, self.tile_size, self.tile_size), (rows, columns))


@dataclass(frozen=True)
class Augment:
    """Random crop and mirror for training. Every draw comes from the generator given, so a sample can be repeated.

    Attributes:
        flip: mirror half of the pictures. Off by default: a caption that says "left" would become wrong.
        crop_scale: least and greatest part of the area kept, e.g. (0.6, 1.0); the aspect ratio stays.
    """

    flip: bool = False
    crop_scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"crop_scale {self.crop_scale}: expected two ascending numbers above 0 and at most 1")

    @property
    def changes(self) -> bool:
        """Whether any picture can come out changed."""
        return self.flip or self.crop_scale[0] < 1

    def draw(self, rng: random.Random) -> tuple[bool, float, float, float]:
        """Everything random about one picture: mirrored or not, side of the crop, its place across and down."""
        mirror, side = rng.random() < 0.5, math.sqrt(rng.uniform(*self.crop_scale))
        return mirror, side, rng.random(), rng.random()

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        mirror, side, right, down = self.draw(rng)
        width, height = (max(1, round(side * length)) for length in image.size)
        if (width, height) != image.size:
            left, top = round(right * (image.width - width)), round(down * (image.height - height))
            image = image.crop((left, top, left + width, top + height))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip and mirror else image
