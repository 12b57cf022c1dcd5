"""Where each word looked: cross-attention weights over image tokens, drawn as heat on the picture.

The weights come from `multimodal.attention_weights`. Image tokens lie tile by tile, row by row over the canvas, each
tile a class token (or whatever an encoder puts first) and then its patches (Llama 3 paper, section 7.2 / spec A2.2);
the picture fills the top left of the canvas and the rest is padding (spec A3).

Legend: T words or tokens, S image tokens of one picture (tiles * (1 + patches)), p patches along the side of a tile.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vision.tiling import Grid

_COLOURS = "inferno"
_DIM = 0.35  # brightness of the picture where nothing looked
_GAP = 8


def merge_tokens(pieces: Sequence[str], weights_TS: Tensor) -> tuple[list[str], Tensor]:
    """Join sub-word tokens into words: a piece that begins with a space begins a word.

    Args:
        pieces: one text per token, of `multimodal.tokenizer.pieces_of`; punctuation stays with the word before it.
        weights_TS: one row per token.

    Returns: the words, and for each the mean of its tokens' rows.
    """
    if len(pieces) != len(weights_TS):
        raise ValueError(f"{len(pieces)} pieces for {len(weights_TS)} rows of weights")
    words: list[str] = []
    rows: list[list[Tensor]] = []
    for piece, row in zip(pieces, weights_TS, strict=True):
        if not rows or piece[:1] in (" ", "\n"):
            words.append("")
            rows.append([])
        words[-1] += piece.strip(" \n")
        rows[-1].append(row)
    if not rows:
        return [], weights_TS
    return words, torch.stack([torch.stack(group).mean(0) for group in rows])


def attention_heat(weights_TS: Tensor, *, grid: Grid, patches_per_side: int, before: int = 1) -> Tensor:
    """Weights over the tokens of one picture -> heat over its canvas [T, rows * p, columns * p], of the patches alone.

    `before`: tokens of a tile that stand before its patches: a class token, registers.

    Raises: ValueError if S is not rows * columns * (before + p * p).
    """
    (rows, columns), p = grid, patches_per_side
    tokens = rows * columns * (before + p * p)
    if weights_TS.shape[-1] != tokens:
        found = weights_TS.shape[-1]
        raise ValueError(
            f"weights over {found} tokens, expected {tokens} for grid {grid} with {p} x {p} patches a tile"
        )
    tiles = weights_TS.reshape(-1, rows, columns, before + p * p)[..., before:]
    tiles = tiles.reshape(-1, rows, columns, p, p).permute(0, 1, 3, 2, 4)
    return tiles.reshape(-1, rows * p, columns * p)


def draw_attention(
    picture: Image.Image,
    words: Sequence[str],
    heat_THW: Tensor,
    content_fraction: tuple[float, float] = (1.0, 1.0),
    *,
    side: int = 176,
    columns: int | None = None,
) -> Image.Image:
    """A grid of the picture, once per word, bright where the word looked, with the word below.

    Args:
        picture: as it was tiled.
        heat_THW: heat over the canvas, from `attention_heat`; each word is scaled to its own peak.
        content_fraction: (width, height) of the canvas that the picture fills: `Tiling.fit` over the canvas size.
        side: longer side of one panel in pixels.
        columns: panels in a row; by default at most 6, rows filled evenly.

    Raises: ValueError if there is not one word for each map.
    """
    if len(words) != len(heat_THW) or not words:
        raise ValueError(f"{len(words)} words for {len(heat_THW)} maps, expected one each and at least one")
    small = picture.convert("RGB")
    scale = side / max(small.size)
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
    columns = columns or math.ceil(len(words) / math.ceil(len(words) / 6))
    font = ImageFont.load_default(15)
    # A tall picture makes a narrow panel: leave room for the word all the same.
    cell_width = max(small.width, *(math.ceil(font.getlength(word)) for word in words)) + _GAP
    cell_height = small.height + 24 + _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, math.ceil(len(words) / columns) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (word, heat) in enumerate(zip(words, heat_THW, strict=True)):
        row, column = divmod(index, columns)
        middle, top = _GAP + column * cell_width + (cell_width - _GAP) // 2, _GAP + row * cell_height
        sheet.paste(_overlay(small, heat, content_fraction), (middle - small.width // 2, top))
        draw.text((middle, top + small.height + 4), word, fill=(30, 32, 38), font=font, anchor="ma")
    return sheet


def _overlay(picture: Image.Image, heat_HW: Tensor, content_fraction: tuple[float, float]) -> Image.Image:
    """The picture, dimmed where the heat is low and tinted where it is high."""
    heat = heat_HW.detach().float().cpu().numpy()
    height, width = heat.shape
    box = (0.0, 0.0, content_fraction[0] * width, content_fraction[1] * height)
    # `box` crops the padding at a fraction of a patch and scales to the picture in one step.
    stretched = Image.fromarray(heat, mode="F").resize(picture.size, Image.Resampling.BICUBIC, box=box)
    strength = np.clip(np.asarray(stretched), 0, None)
    strength = (strength / max(float(strength.max()), 1e-12))[..., None]
    colour = np.asarray(colormaps[_COLOURS](0.25 + 0.7 * strength[..., 0]))[..., :3] * 255
    pixels = np.asarray(picture, dtype=np.float32)
    lit = pixels * (_DIM + (1 - _DIM) * strength)
    mixed = lit * (1 - 0.45 * strength) + colour * 0.45 * strength
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
