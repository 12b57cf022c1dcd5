"""Pictures as a modality: configuration, tiling, encoders, and what is trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from multimodal.decoder import FrozenDecoder
from multimodal.decoder_sizes import decoder_sizes
from multimodal.errors import UserError
from tests.multimodal.tiny_decoders import tiny_decoder
from tests.tiny_models import CONFIG, ENCODER, TILE, picture, tiny_model
from vision.encoder import ImageEncoder, ImageEncoderConfig
from vision.encoder_folder import ENCODER_FILE
from vision.image_adapter import ImageAdapterConfig
from vision.image_modality import EncoderOptions, ImageConfig, ImageModality


def modality(config: ImageConfig = CONFIG) -> ImageModality:
    torch.manual_seed(3)
    return ImageModality.create(config, FrozenDecoder(tiny_decoder()))


def weights_folder(folder: Path) -> Path:
    torch.manual_seed(5)
    save_file(ImageEncoder(ImageEncoderConfig(**ENCODER)).state_dict(), folder / ENCODER_FILE)
    return folder


# ---- configuration ------------------------------------------------------------------------------------------------


def test_a_configuration_survives_json(tmp_path: Path) -> None:
    config = ImageConfig(
        encoder=EncoderOptions(**ENCODER, taps=(1, 2), drop_path=0.1, tap_norm=False),
        adapter=ImageAdapterConfig(cross_layers=3, heads=2, dropout=0.2),
        stretch=True,
    )
    assert ImageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    started = replace(config, encoder=replace(config.encoder, weights=tmp_path))
    assert ImageConfig.from_dict(json.loads(json.dumps(started.to_dict()))) == config, "weights are a start, no more"


def test_a_configuration_and_what_was_saved_of_it_make_equal_modalities() -> None:
    a, b = modality(), modality(json.loads(json.dumps(CONFIG.to_dict())))
    assert a.tiling == b.tiling and all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3"])
def test_sizes_of_the_decoder_whatever_its_family_calls_them(family: str) -> None:
    sizes = decoder_sizes(FrozenDecoder(tiny_decoder(family)))
    assert (sizes.width, sizes.layers, sizes.heads, sizes.ffn) == (32, 4, 4, 48)
    assert sizes.kv_heads == (4 if family == "gpt_neox" else 2) and 0 < sizes.eps < 1e-4


def test_every_setting_reaches_the_tiling_and_the_encoder() -> None:
    options = EncoderOptions(**dict(ENCODER, tile_size=24, max_tiles=2))
    made = modality(ImageConfig(encoder=options, stretch=True))
    assert (made.tiling.tile_size, made.tiling.max_tiles, made.tiling.stretch) == (24, 2, True)
    assert made.prepare(picture(50, 48)).grid in ((1, 2), (2, 1), (1, 1))
    assert made.encoder.tile_size == 24


# ---- starting weights ---------------------------------------------------------------------------------------------


def test_weights_of_a_pretrained_encoder_are_the_start(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path)
    made = modality(ImageConfig(encoder=EncoderOptions(**ENCODER, weights=folder)))
    expected = load_file(folder / ENCODER_FILE)
    assert all(torch.equal(t, expected[name]) for name, t in made.encoder.state_dict().items())
    assert not torch.equal(modality().encoder.state_dict()["class_token_D"], expected["class_token_D"])


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path)
    file = folder / ENCODER_FILE
    cases = {"does not fit.*size mismatch": dict(ENCODER, width=32), "does not fit": dict(ENCODER, layers=3)}
    for expected, sizes in cases.items():
        with pytest.raises(UserError, match=expected) as error:
            modality(ImageConfig(encoder=EncoderOptions(**sizes, weights=folder)))
        assert "\n" not in str(error.value) and str(file) in str(error.value)
    file.write_bytes(file.read_bytes()[:500])
    config = ImageConfig(encoder=EncoderOptions(**ENCODER, weights=folder))
    with pytest.raises(UserError, match="cannot be read"):
        modality(config)
    file.unlink()
    with pytest.raises(UserError, match="not found; expected a folder written by pretrain_image_encoder"):
        modality(config)


# ---- higher resolution --------------------------------------------------------------------------------------------


def test_another_tile_size_keeps_every_weight_but_the_positions() -> None:
    made = modality()
    before = {name: t.clone() for name, t in made.state_dict().items()}
    made.resize_tiles(24)
    assert made.tiling.tile_size == made.encoder.tile_size == made.config.encoder.tile_size == 24
    moved = {name for name, t in made.state_dict().items() if t.shape != before[name].shape}
    assert moved and all("positions" in name for name in moved)
    assert all(torch.equal(t, before[name]) for name, t in made.state_dict().items() if name not in moved)
    assert made.encoder(made.collate([made.prepare(picture(24, 24))])).lengths == (10,)
    made.resize_tiles(24)


def test_a_foreign_encoder_brings_its_tile_size_and_keeps_it(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    CLIPVisionModel(CLIPVisionConfig(**shape, num_attention_heads=2, patch_size=8, image_size=32)).save_pretrained(
        tmp_path
    )
    made = modality(ImageConfig(encoder=EncoderOptions(name=str(tmp_path), tile_size=64)))
    assert made.tiling.tile_size == 32 and made.prepare(picture(64, 32)).grid == (1, 2)
    with pytest.raises(UserError, match=f"tile size 48: the tile size of {tmp_path} is fixed"):
        made.resize_tiles(48)


def test_an_unknown_encoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded") as error:
        modality(ImageConfig(encoder=EncoderOptions(name=str(tmp_path / "none"))))
    assert "\n" not in str(error.value)


# ---- what is trained ----------------------------------------------------------------------------------------------


def test_parts_are_gates_adapter_encoder_and_what_it_has_of_late_and_cover_all() -> None:
    made = modality()
    parts = made.parts()
    assert set(parts) == {"adapter", "gates", "encoder", "late"}
    assert [p.numel() for _, p in parts["gates"]] == [1] * 4
    assert parts["late"] and {id(p) for _, p in parts["late"]} == {id(p) for p in made.encoder.late_parameters()}
    named = [pair for pairs in parts.values() for pair in pairs]
    assert {name: id(p) for name, p in named} == {name: id(p) for name, p in made.named_parameters()}
    assert len(named) == len(dict(named))


def test_gates_are_logged_as_what_they_let_through() -> None:
    made = modality()
    assert set(made.log_values().values()) == {0.0}
    for _, gate in made.parts()["gates"]:
        nn.init.constant_(gate, 20.0)
    assert all(value == pytest.approx(1) for value in made.log_values().values())


def test_a_blank_picture_has_the_shape_but_not_the_pixels() -> None:
    made = modality()
    tiles = made.prepare(picture(2 * TILE, TILE))
    blank = made.blank(tiles)
    assert blank.grid == tiles.grid and blank.pixels.shape == tiles.pixels.shape and not blank.pixels.any()
    assert tiles.pixels.any()


@pytest.mark.parametrize("source", ["path", "image", "array"])
def test_a_picture_is_the_same_from_anywhere(tmp_path: Path, source: str) -> None:
    import numpy as np

    made, image = modality(), picture(2 * TILE, TILE, seed=2)
    image.save(tmp_path / "p.png")
    given = {"path": tmp_path / "p.png", "image": image, "array": np.asarray(image)}[source]
    assert torch.equal(made.prepare(given).pixels, made.prepare(str(tmp_path / "p.png")).pixels)


def test_moving_the_model_moves_the_modality() -> None:
    model = tiny_model()
    model.to("meta")
    assert {p.device.type for p in model.modalities.parameters()} == {"meta"}
