"""Encoders of `transformers`: parity with their own hidden states, one interface, each tile alone. Tiny random
models, offline.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from multimodal.errors import UserError
from tests.spoilt_weights import FAULTS, spoil
from vision.encoder import ImageEncoder, ImageEncoderConfig
from vision.hub_encoder import HubEncoderConfig, HubImageEncoder
from vision.tiling import TileBatch, Tiles, batch_tiles

SHAPE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
PIXELS: dict[str, Any] = SHAPE | {"patch_size": 8, "image_size": 32}
TEXT: dict[str, Any] = SHAPE | {"vocab_size": 30}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=PIXELS)),
    "clip vision": lambda: CLIPVisionModel(CLIPVisionConfig(**PIXELS)),
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=PIXELS)),
    "siglip vision": lambda: SiglipVisionModel(SiglipVisionConfig(**PIXELS)),
    "siglip2": lambda: Siglip2VisionModel(Siglip2VisionConfig(**SHAPE, patch_size=8, num_patches=16)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**PIXELS)),
    "dinov2 registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**PIXELS)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**PIXELS, num_register_tokens=4)),
    "vit": lambda: ViTModel(ViTConfig(**PIXELS)),
}
TOKENS = {
    "clip": 17,
    "clip vision": 17,
    "siglip": 16,
    "siglip vision": 16,
    "siglip2": 16,
    "dinov2": 17,
    "dinov2 registers": 21,
    "dinov3": 21,
    "vit": 17,
}


def build(name: str, **settings: Any) -> HubImageEncoder:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, so that a forgotten norm shows
            parameter.add_(0.1 * torch.randn_like(parameter))
    return HubImageEncoder(model, **settings).eval()


def pictures(size: int = 32) -> list[Tiles]:
    generator = torch.Generator().manual_seed(1)
    grids = [(1, 1), (2, 2), (1, 2)]
    return [Tiles(torch.randn(rows * cols, 3, size, size, generator=generator), (rows, cols)) for rows, cols in grids]


@pytest.mark.parametrize("name", MODELS)
def test_parity_with_the_models_own_hidden_states(name: str) -> None:
    encoder = build(name, taps=(1, 3, 4), tap_norm=False)
    batch = batch_tiles(pictures())
    features = encoder(batch)
    pixels = batch.pixels
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if name == "siglip2":
        patches = torch.stack(
            [
                tile[:, y : y + 8, x : x + 8].permute(1, 2, 0).flatten()
                for tile in pixels
                for y in range(0, 32, 8)
                for x in range(0, 32, 8)
            ]
        )
        inputs = {
            "pixel_values": patches.view(len(pixels), 16, -1),
            "pixel_attention_mask": torch.ones(len(pixels), 16, dtype=torch.long),
            "spatial_shapes": torch.full((len(pixels), 2), 4),
        }
    output = encoder.model(**inputs, output_hidden_states=True)
    final = output.last_hidden_state
    if name.startswith("clip"):
        final = encoder.model.get_submodule("post_layernorm")(final)  # what CLIP itself does to the class token
        torch.testing.assert_close(final[:, 0], output.pooler_output)
    expected = torch.cat([final, *(output.hidden_states[tap] for tap in (1, 3, 4))], dim=-1)
    torch.testing.assert_close(features.tokens, expected.flatten(0, 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_protocol_for_grafts_own_and_all_others() -> None:
    own = ImageEncoder(ImageEncoderConfig(tile_size=32, patch_size=8, width=16, layers=4, heads=2)).eval()
    batch = batch_tiles(pictures())
    for name, encoder in {"own": own, **{name: build(name) for name in MODELS}}.items():
        alone, none = encoder.forward_intermediates(batch)
        final, (second, last) = encoder.forward_intermediates(batch, (2, 4))
        assert not none and torch.equal(alone, final)
        assert final.shape == second.shape == last.shape == (7, encoder.tokens_per_tile, 16), name
        # What joins the features is what is asked for by number.
        tapped = encoder.forward_intermediates(batch, encoder.tap_layers)[1]
        parts = encoder(batch).tokens.unflatten(0, (7, -1)).split(16, dim=-1)[1:]
        for part, tap, norm in zip(parts, tapped, encoder.tap_norms, strict=True):
            torch.testing.assert_close(part, norm(tap))


@pytest.mark.parametrize("name", MODELS)
def test_interface_and_each_picture_alone(name: str) -> None:
    encoder = build(name)
    assert encoder.tile_size == 32 and encoder.tokens_per_tile == TOKENS[name]
    assert encoder.tap_layers == (1, 2, 3) and encoder.feature_dim == 64
    features = encoder(batch_tiles(pictures()))
    assert features.lengths == tuple(tiles * TOKENS[name] for tiles in (1, 4, 2))
    assert features.tokens.shape == (sum(features.lengths), 64)
    for together, picture in zip(features.split(), pictures(), strict=True):
        torch.testing.assert_close(together, encoder(batch_tiles([picture])).tokens, atol=1e-5, rtol=1e-5)
    hooks = [len(module._forward_hooks) for module in encoder.model.modules()]
    encoder(batch_tiles(pictures()))
    assert [len(module._forward_hooks) for module in encoder.model.modules()] == hooks


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2", "dinov2", "dinov3", "vit"])
def test_another_tile_size_resizes_the_positions(name: str) -> None:
    encoder = build(name, tile_size=48)
    assert encoder.tokens_per_tile == TOKENS[name] - 16 + 36
    assert encoder(batch_tiles(pictures(48))).tokens.isfinite().all()


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "dinov3"])
def test_gradients_reach_the_layers_and_checkpointing_equals(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = build(name).train()
        if checkpointing:
            encoder.enable_gradient_checkpointing()
        encoder(batch_tiles(pictures())).tokens.square().mean().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    assert sum("layer" in n for n in gradients[0]) > 20 and gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key])


@torch.no_grad()
def test_dinov3_knows_where_a_patch_is_at_every_tile_size() -> None:
    """Its positions are rotations, without a table to interpolate: moving a patch must still change its features."""
    for size in (32, 48):
        encoder = build("dinov3", tile_size=size)
        (tiles,) = batch_tiles(pictures(size)[:1]).pixels[None]
        moved = encoder(TileBatch(tiles.roll(8, dims=3), [(1, 1)])).tokens
        prefix, side = 5, size // 8  # class token and registers, then patches row by row
        there = encoder(TileBatch(tiles, [(1, 1)])).tokens[prefix:].unflatten(0, (side, side))
        assert not torch.allclose(there.roll(1, dims=1).flatten(0, 1), moved[prefix:], atol=1e-3)


def test_dinov3s_positions_are_not_random_in_training() -> None:
    encoder, batch = build("dinov3"), batch_tiles(pictures())
    assert torch.equal(encoder.train()(batch).tokens, encoder.eval()(batch).tokens)


def test_a_frozen_encoder_is_used_as_it_was_published() -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(**PIXELS, attention_dropout=0.5)
    encoder = HubImageEncoder(CLIPVisionModel(config)).requires_grad_(False).train()
    assert not any(module.training for module in encoder.modules())
    encoder.requires_grad_(True).train()
    assert encoder.training and encoder.model.training


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "dinov3"])
def test_from_a_folder_with_its_own_pixel_statistics(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS[name]().save_pretrained(tmp_path)
    encoder = HubImageEncoder.from_pretrained(HubEncoderConfig(str(tmp_path), taps=(2,)))
    assert encoder.pixel_mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-3)  # no processor: CLIP's
    processor = (
        '{"image_processor_type": "CLIPImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}'
    )
    (tmp_path / "preprocessor_config.json").write_text(processor)
    again = HubImageEncoder.from_pretrained(HubEncoderConfig(str(tmp_path), taps=(2,)))
    assert again.pixel_mean == (0.1, 0.2, 0.3) and again.pixel_std == (0.4, 0.5, 0.6)
    batch = batch_tiles(pictures())
    assert torch.equal(again.eval()(batch).tokens, encoder.eval()(batch).tokens)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2", "dinov2", "dinov3"])
def test_weights_that_do_not_fit_are_named(
    name: str, fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    MODELS[name]().save_pretrained(tmp_path)
    expected = spoil(tmp_path, fault, last=3, skip="text_model")
    capfd.readouterr()
    with pytest.raises(UserError, match=f"weights do not fit its config.json: {expected}") as error:
        HubImageEncoder.from_pretrained(HubEncoderConfig(str(tmp_path)))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value) and capfd.readouterr() == ("", "")


def test_weights_that_no_feature_needs_may_be_missing(tmp_path: Path) -> None:
    """Of CLIP its text tower, of ViT its pooler."""
    for name, unneeded in (("clip", "text_model"), ("vit", "pooler")):
        MODELS[name]().save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        kept = {key: tensor for key, tensor in tensors.items() if unneeded not in key}
        assert len(kept) < len(tensors)
        whole = HubImageEncoder.from_pretrained(HubEncoderConfig(str(tmp_path / name))).eval()
        save_file(kept, file, metadata={"format": "pt"})
        less = HubImageEncoder.from_pretrained(HubEncoderConfig(str(tmp_path / name))).eval()
        batch = batch_tiles(pictures())
        assert torch.equal(less(batch).tokens, whole(batch).tokens) and less.origin is None is not whole.origin


def test_code_beside_a_model_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')")
    own = '{"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoImageProcessor": "code.Processor"}'
    (tmp_path / "config.json").write_text(f'{{"model_type": "own", "auto_map": {own}}}')
    with pytest.raises(UserError, match="contains custom code") as error:
        HubImageEncoder.from_pretrained(HubEncoderConfig(str(tmp_path)))
    assert "\n" not in str(error.value) and not (tmp_path / "was run").exists()


def test_bad_input_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        HubImageEncoder.from_pretrained(HubEncoderConfig(str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="multiple of its patch_size"):
        build("clip", tile_size=30)
    with pytest.raises(UserError, match="from 1 to 4"):
        build("clip", taps=(5,))
    with pytest.raises(UserError, match="expected 32 x 32"):
        build("clip")(TileBatch(torch.zeros(1, 3, 16, 16), [(1, 1)]))
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(UserError, match="vision transformer"):
        HubImageEncoder(resnet)
