"""How a batch lies in the encoder: strict numerics add nothing, reference numerics padding that is found again."""

import pytest
import torch

from multimodal.errors import UserError
from vision.tile_layout import Numerics, lay_out, tiles_by_count
from vision.tiling import TileBatch

GRIDS = [(1, 2), (2, 2), (1, 1)]


def batch() -> TileBatch:
    torch.manual_seed(0)
    return TileBatch(torch.randn(7, 3, 4, 4), GRIDS)


def test_strict_adds_nothing() -> None:
    layout = lay_out(batch(), max_tiles=4, tokens_per_tile=5, numerics="strict")
    x_TLD = torch.randn(7, 5, 2)
    assert layout.counts == (2, 4, 1) and layout.mask_M1PP is None and torch.equal(layout.pixels, batch().pixels)
    assert layout.pad(x_TLD) is x_TLD and layout.real(x_TLD) is x_TLD


def test_reference_pads_and_finds_the_real_tokens_again() -> None:
    layout = lay_out(batch(), max_tiles=4, tokens_per_tile=5, numerics="reference")
    assert layout.counts == (4, 4, 4) and layout.pixels.shape[0] == 12 and layout.pad_tokens == 3
    assert torch.equal(layout.pixels[layout.real_T], batch().pixels)
    assert float(layout.pixels.abs().sum()) == float(batch().pixels.abs().sum())
    x_TLD = torch.randn(12, 5, 2)
    assert torch.equal(layout.real(layout.pad(x_TLD)), x_TLD[layout.real_T])
    assert float(layout.pad(x_TLD)[:, 5:].abs().sum()) == 0
    assert layout.rows_T.tolist()[:4] == [8, 9, 10, 11], "four rows of grid 1 x 2, the second after no picture"


def test_only_pairs_of_padding_are_masked() -> None:
    mask = lay_out(batch(), max_tiles=4, tokens_per_tile=5, numerics="reference").mask_M1PP
    assert mask is not None and mask.shape == (3, 1, 32, 32)
    for picture, tiles in enumerate((2, 4, 1)):
        real = torch.tensor([tile < tiles and token < 5 for tile in range(4) for token in range(8)])
        assert torch.equal(~mask[picture, 0], torch.outer(~real, ~real))


@pytest.mark.parametrize("numerics", ["strict", "reference"])
def test_too_many_tiles(numerics: Numerics) -> None:
    with pytest.raises(UserError, match="2 x 2 tiles"):
        lay_out(batch(), max_tiles=2, tokens_per_tile=5, numerics=numerics)


def test_tiles_by_count() -> None:
    assert tiles_by_count((2, 1, 2)) == {2: [0, 1, 3, 4], 1: [2]}
