"""The image encoder: no picture sees another, gates start shut, taps are the layers they say."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from multimodal.errors import UserError
from vision.encoder import Block, ImageEncoder, ImageEncoderConfig, paper_taps
from vision.tiling import TileBatch, Tiles, batch_tiles

CONFIG = ImageEncoderConfig(tile_size=16, patch_size=8, width=32, layers=6, global_layers=2, heads=4)
GRIDS = [(1, 2), (1, 1), (2, 2), (1, 1), (2, 1), (1, 3), (4, 1)]


def build(*, open_gates: bool = False, seed: int = 0, **changes: Any) -> ImageEncoder:
    torch.manual_seed(seed)
    encoder = ImageEncoder(replace(CONFIG, **changes)).eval()
    if open_gates:
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if "gate" in name:
                    parameter.fill_(0.7)
    return encoder


def pictures(grids: list[tuple[int, int]] = GRIDS, size: int = 16) -> list[Tiles]:
    generator = torch.Generator().manual_seed(1)
    return [Tiles(torch.randn(rows * cols, 3, size, size, generator=generator), (rows, cols)) for rows, cols in grids]


@pytest.mark.parametrize(("stem", "numerics"), [("patch", "strict"), ("conv", "strict"), ("patch", "reference")])
@pytest.mark.parametrize("training", [False, True])
def test_ragged_batch_equals_each_picture_alone(stem: str, numerics: str, training: bool) -> None:
    encoder = build(open_gates=True, stem=stem, numerics=numerics).train(training)
    batch = batch_tiles(pictures())
    features = encoder(batch)
    assert features.lengths == tuple(rows * cols * 5 for rows, cols in GRIDS)
    assert features.tokens.shape == (sum(features.lengths), encoder.feature_dim)
    for together, picture in zip(features.split(), pictures(), strict=True):
        torch.testing.assert_close(together, encoder(batch_tiles([picture])).tokens, atol=1e-5, rtol=1e-5)
    pooled = encoder.pool(batch)
    alone = torch.cat([encoder.pool(batch_tiles([picture])) for picture in pictures()])
    torch.testing.assert_close(pooled, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("numerics", ["strict", "reference"])
def test_a_broken_neighbour_changes_nothing(numerics: str) -> None:
    encoder = build(open_gates=True, numerics=numerics)
    first, second = pictures([(1, 2), (1, 2)])
    broken = Tiles(torch.full_like(second.pixels, torch.nan), second.grid)
    clean = encoder(batch_tiles([first, second])).split()[0]
    assert torch.equal(encoder(batch_tiles([first, broken])).split()[0], clean)


def test_permuting_the_batch_permutes_the_features() -> None:
    encoder = build(open_gates=True)
    order = [3, 0, 6, 2, 5, 1, 4]
    images = pictures()
    straight = encoder(batch_tiles(images)).split()
    permuted = encoder(batch_tiles([images[i] for i in order])).split()
    for place, i in enumerate(order):
        torch.testing.assert_close(permuted[place], straight[i], atol=1e-5, rtol=1e-5)


def test_tiles_of_one_picture_attend_to_each_other_and_know_their_place() -> None:
    encoder = build(open_gates=True)
    (picture,) = pictures([(2, 2)])
    changed = picture.pixels.clone()
    changed[3] += 1.0
    before, after = (encoder(TileBatch(pixels, [(2, 2)])).tokens[:5] for pixels in (picture.pixels, changed))
    assert (before - after).abs().max() > 1e-3
    same = picture.pixels[:1].repeat(4, 1, 1, 1)
    tiles = encoder(TileBatch(same, [(2, 2)])).tokens.unflatten(0, (4, 5))
    assert all((tiles[i] - tiles[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))
    closed = build()(TileBatch(same, [(2, 2)])).tokens.unflatten(0, (4, 5))  # a per-tile ViT at the start
    torch.testing.assert_close(closed, closed[:1].expand_as(closed), atol=1e-5, rtol=1e-5)


def test_shut_gates_make_the_global_layers_the_identity() -> None:
    batch = batch_tiles(pictures())
    encoder = build()
    final, _ = encoder.forward_intermediates(batch)
    assert torch.equal(encoder(batch).tokens[:, :32], final.flatten(0, 1))
    opened = build(open_gates=True)
    final, _ = opened.forward_intermediates(batch)
    assert (opened(batch).tokens[:, :32] - final.flatten(0, 1)).abs().max() > 1e-3


@pytest.mark.parametrize("tap_norm", [False, True])
def test_taps_are_the_outputs_of_their_layers_counted_from_one(tap_norm: bool) -> None:
    encoder = build(open_gates=True, taps=(1, 4, 6), tap_norm=tap_norm)
    seen: dict[int, Tensor] = {}
    for number, layer in enumerate(encoder.layers, start=1):

        def hook(_module: object, _inputs: object, output: Tensor, number: int = number) -> None:
            seen[number] = output

        layer.register_forward_hook(hook)
    blocks = encoder(batch_tiles(pictures([(1, 2), (2, 1)]))).tokens.split(32, dim=-1)
    assert len(blocks) == 4 and encoder.feature_dim == 128
    for block, norm, number in zip(blocks[1:], encoder.tap_norms, (1, 4, 6), strict=True):
        torch.testing.assert_close(block, norm(seen[number].flatten(0, 1)))
    # The last layer's raw output is a tap like others; the final features went on through norm and global layers.
    assert not torch.allclose(blocks[0], blocks[3])


def test_default_taps_follow_the_paper() -> None:
    table = {32: (4, 8, 16, 24, 31), 16: (2, 4, 8, 12, 15), 12: (2, 3, 6, 9, 11), 8: (1, 2, 4, 6, 7)}
    assert {depth: paper_taps(depth) for depth in table} == table
    for depth in range(1, 40):
        assert all(1 <= tap < depth for tap in paper_taps(depth))


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_gradient_reaches_everything_once_the_gates_have_moved(stem: str) -> None:
    encoder = build(stem=stem).train()
    batch = batch_tiles(pictures([(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]))

    def backward() -> set[str]:
        encoder.zero_grad()
        encoder(batch).tokens.square().mean().backward()
        return {name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()}

    shut = backward()
    assert not any("gate" in name for name in shut)
    assert {"pre_tile.table_RD", "positions.tiled_RLD", "global_layers.0.qkv.weight"} <= shut
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter -= 0.1 * parameter.grad  # pyright: ignore[reportOperatorIssue]
    assert backward() == set()


def test_checkpointing_gives_equal_gradients_with_drop_path() -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = build(open_gates=True, drop_path=0.5).train()
        if checkpointing:
            encoder.enable_gradient_checkpointing()
        torch.manual_seed(3)
        encoder(batch_tiles(pictures())).tokens.square().mean().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_drop_path_is_random_in_training_only_and_follows_the_seed() -> None:
    encoder = build(drop_path=0.5)
    batch = batch_tiles(pictures())

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return encoder(batch).tokens

    assert torch.equal(run(0), run(1))
    encoder.train()
    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


def test_a_frozen_encoder_drops_nothing_in_training() -> None:
    encoder = build(drop_path=0.5).requires_grad_(False)
    batch = batch_tiles(pictures())
    assert torch.equal(encoder.train()(batch).tokens, encoder.eval()(batch).tokens)


def test_resized_encoder_is_equal_at_the_same_size_and_takes_larger_tiles() -> None:
    encoder = build(open_gates=True)
    batch = batch_tiles(pictures())
    assert torch.equal(encoder.resized(16)(batch).tokens, encoder(batch).tokens)
    larger = encoder.resized(32)
    features = larger(batch_tiles(pictures(size=32)))
    assert larger.tokens_per_tile == 17 and features.lengths == tuple(rows * cols * 17 for rows, cols in GRIDS)
    assert torch.equal(larger.positions.local_LD[0], encoder.positions.local_LD[0])
    assert encoder.tile_size == 16 and torch.equal(encoder(batch).tokens, build(open_gates=True)(batch).tokens)
    fresh = ImageEncoder(larger.config)
    fresh.load_state_dict(larger.state_dict())


def test_late_parameters_are_those_that_pooling_does_not_train() -> None:
    encoder = build(open_gates=True)
    encoder.pool(batch_tiles(pictures([(1, 1)]))).square().sum().backward()
    parts = encoder.parts()
    assert all(parameter.grad is not None and parameter.grad.any() for _, parameter in parts["encoder"])
    assert {name for name, _ in parts["late"]} >= {
        f"encoder.{name}" for name, p in encoder.named_parameters() if p.grad is None
    }
    assert {name for named in parts.values() for name, _ in named} == {
        f"encoder.{name}" for name, _ in encoder.named_parameters()
    }


def test_block_mask_hides_keys() -> None:
    torch.manual_seed(0)
    block = Block(width=16, heads=2)
    x = torch.randn(2, 5, 16)
    mask = torch.tensor([1, 1, 1, 0, 0], dtype=torch.bool).view(1, 1, 1, 5)
    torch.testing.assert_close(block(x, mask)[:, :3], block(x[:, :3]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tile_size": 20},
        {"heads": 5},
        {"taps": (0, 2)},
        {"taps": (2, 7)},
        {"taps": (3, 2)},
        {"drop_path": 1.0},
        {"stem": "conv", "patch_size": 7, "tile_size": 14},
        {"stem": "conv", "patch_size": 1},
        {"max_tiles": 0},
    ],
)
def test_impossible_shapes_are_user_errors_on_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        replace(CONFIG, **wrong)
    assert "\n" not in str(error.value)


def test_wrong_tiles_are_user_errors() -> None:
    encoder = build()
    with pytest.raises(UserError, match="8 x 8"):
        encoder(TileBatch(torch.zeros(1, 3, 8, 8), [(1, 1)]))
    with pytest.raises(UserError, match="2 x 3"):
        encoder(TileBatch(torch.zeros(6, 3, 16, 16), [(2, 3)]))
