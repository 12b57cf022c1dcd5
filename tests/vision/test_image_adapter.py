"""The image adapter alone: each row gets the keys and values of its own pictures, whatever else is in the batch."""

from dataclasses import replace

import pytest
import torch

from multimodal.batch import MediaBatch
from multimodal.decoder_sizes import DecoderSizes
from multimodal.errors import UserError
from multimodal.memory import token_groups
from vision.cross_layers import own_columns
from vision.encoder import ImageFeatures
from vision.image_adapter import ImageAdapter, ImageAdapterConfig

SIZES = DecoderSizes(width=32, layers=8, heads=4, kv_heads=2, ffn=48, eps=1e-5)
WIDTH = 12
LENGTHS = (3, 5, 2)
# Row 0 sees pictures 1 and 0 in two groups, row 1 none, row 2 and row 3 see pictures 2 and 1 together.
ROWS = (((1, 1), (0, 2)), (), ((2, 1), (1, 1)), ((2, 1), (1, 1)))


def adapter(**settings: object) -> ImageAdapter:
    torch.manual_seed(0)
    made = ImageAdapter(ImageAdapterConfig(**settings), decoder=SIZES, feature_dim=WIDTH)  # type: ignore[arg-type]
    return made.eval()


def features() -> ImageFeatures:
    torch.manual_seed(1)
    return ImageFeatures(torch.randn(sum(LENGTHS), WIDTH), LENGTHS)


def media(rows: tuple[tuple[tuple[int, int], ...], ...] = ROWS) -> MediaBatch:
    return MediaBatch(None, rows, torch.zeros(len(rows), 4, dtype=torch.long))


def test_each_row_has_the_tokens_of_its_pictures_in_order() -> None:
    made, found = adapter(), features()
    memory = made.memory(found, media())
    pictures = found.split()
    assert memory.memory_group.tolist() == [
        [1] * 5 + [2] * 3,
        [-1] * 8,
        [1] * 7 + [-1],
        [1] * 7 + [-1],
    ]
    for name, layer in made.layers.items():
        for row, places in enumerate(ROWS):
            if not places:
                continue
            tokens = torch.cat([pictures[p] for p, _ in places])
            k, v = layer.project(made.projector(tokens)[None])  # type: ignore[operator]
            torch.testing.assert_close(memory.keys[int(name)][row, :, : len(tokens)], k[0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(memory.values[int(name)][row, :, : len(tokens)], v[0], atol=1e-6, rtol=1e-5)


def test_pictures_in_the_order_of_their_rows_are_not_gathered_and_give_the_same_to_the_bit() -> None:
    made = adapter()
    found = ImageFeatures(torch.randn(9, WIDTH), (3, 3, 3))
    rows = (((0, 1),), ((1, 1),), ((2, 1),))
    in_order, turned = made.memory(found, media(rows)), made.memory(found, media(rows[::-1]))
    for layer, keys in in_order.keys.items():
        assert torch.equal(keys, turned.keys[layer].flip(0))
        assert torch.equal(in_order.values[layer], turned.values[layer].flip(0))
    assert in_order.keys[7].transpose(0, 1).is_contiguous() and not turned.keys[7].is_contiguous()


def test_each_picture_is_projected_once() -> None:
    made, seen = adapter(), []
    made.projector.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape))
    made.memory(features(), media())
    assert seen == [(sum(LENGTHS), WIDTH)]


def test_several_rows_add_up_their_gradients_on_one_picture() -> None:
    made = adapter()

    def gradient(*rows: tuple[tuple[int, int], ...]) -> torch.Tensor:
        found = features()
        tokens = found.tokens.requires_grad_()
        memory = made.memory(found, media(rows))
        sum(v.square().sum() for v in memory.values.values()).backward()  # type: ignore[union-attr]
        assert tokens.grad is not None
        return tokens.grad

    row = ((2, 1),)
    once, twice = gradient(row), gradient(row, row)
    torch.testing.assert_close(twice, 2 * once)
    assert once[-2:].abs().min() > 0 and not once[:-2].any()


def test_sizes_are_the_decoders_unless_given() -> None:
    assert list(adapter(cross_layers=2).layers) == ["3", "7"] and next(iter(adapter(cross_layers=4).layers)) == "1"
    memory = adapter().memory(features(), media())
    assert {k.shape for k in memory.keys.values()} == {(4, 2, 8, 8)}
    memory = adapter(heads=8, kv_heads=4).memory(features(), media())
    assert {k.shape for k in memory.keys.values()} == {(4, 4, 8, 4)}
    assert adapter(heads=8).memory(features(), media()).keys[7].shape == (4, 8, 8, 4)
    layer = adapter(ffn=20).layers["7"]
    assert layer.ffn.up.weight.shape == (20, 32)  # type: ignore[union-attr]


def test_layers_may_be_placed_by_hand() -> None:
    assert list(adapter(placed=(0, 5)).layers) == ["0", "5"]
    for placed in ((), (5, 0), (1, 1), (-1,), (8,)):
        with pytest.raises(UserError, match="rising numbers from 0 to 7"):
            adapter(placed=placed)


def test_own_columns_are_those_of_the_placeholders() -> None:
    placeholders = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0] * 6], dtype=torch.bool)
    rows = (((0, 1), (1, 1), (2, 2)), ((1, 1),), ())
    columns = own_columns((2, 1, 3), MediaBatch(None, rows, token_groups(placeholders)))
    assert columns.tolist() == [[1, 1, 2, 4, 4, 4], [3, 0, 0, 0, 0, 0], [0] * 6]


def test_dropout_is_on_in_training_only() -> None:
    made = adapter(dropout=0.5)
    calm = made.memory(features(), media()).values[7]
    assert torch.equal(calm, made.memory(features(), media()).values[7])
    made.train()
    assert not torch.equal(calm, made.memory(features(), media()).values[7])


@pytest.mark.parametrize("settings", [{"kv_heads": 3}, {"heads": 6, "kv_heads": 4}, {"heads": 64}, {"cross_layers": 9}])
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected"):
        adapter(**settings)


def test_heads_need_not_divide_the_width() -> None:
    made = ImageAdapter(ImageAdapterConfig(), decoder=replace(SIZES, heads=5, kv_heads=5), feature_dim=WIDTH)
    assert made.memory(features(), media()).keys[7].shape == (4, 5, 8, 6)
