"""Contrastive pre-training from data to a folder that captioning starts from."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multimodal.errors import UserError
from multimodal.train.config import TrainConfig
from tests.tiny_models import ENCODER, TILE
from vision.caption_training import SCENES, DataConfig
from vision.contrastive_training import ContrastiveConfig, ScenePairs, pretrain_image_encoder
from vision.encoder import ImageEncoder
from vision.encoder_folder import load_encoder
from vision.image_modality import EncoderOptions
from vision.scene_language import named_objects
from vision.scenes import SceneMix, scene_sample
from vision.tiling import Tiling

RETRIEVAL = {f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5)}


def config(run_dir: Path, decoder: Path, source: str, **train: int) -> ContrastiveConfig:
    settings = {"steps": 3, "batch_size": 4} | train
    return ContrastiveConfig(
        run_dir=run_dir,
        train=TrainConfig(learning_rates={"encoder": 1e-2, "text": 1e-2}, tensorboard=False, **settings),  # type: ignore[arg-type]
        encoder=EncoderOptions(**ENCODER),
        data=DataConfig(source=source, scenes=32, scene_size=TILE, dev_count=3),
        tokenizer=str(decoder),
        text_width=16,
        text_layers=1,
        text_heads=2,
        embed_dim=16,
    )


@pytest.mark.parametrize("kind", ["scenes", "folder"])
def test_trains_measures_and_saves_an_encoder(
    kind: str, tmp_path: Path, decoder_folder: Path, captions_folder: Path
) -> None:
    source = SCENES if kind == "scenes" else str(captions_folder)
    result = pretrain_image_encoder(config(tmp_path / "run", decoder_folder, source))
    assert result.steps == 3
    assert set(result.metrics) == RETRIEVAL
    assert all(0 <= value <= 1 for value in result.metrics.values())
    fresh, loaded = (ImageEncoder(EncoderOptions(**ENCODER)) for _ in range(2))
    torch.nn.init.zeros_(loaded.class_token_D)
    load_encoder(loaded, tmp_path / "run" / "encoder")
    assert loaded.class_token_D.abs().sum() > 0
    assert not torch.equal(loaded.class_token_D, fresh.class_token_D)


def test_the_saved_encoder_is_the_trained_one(tmp_path: Path, decoder_folder: Path) -> None:
    """Twice the same run gives the same file; one more step another."""
    for name, steps in (("a", 2), ("b", 2), ("c", 3)):
        pretrain_image_encoder(config(tmp_path / name, decoder_folder, SCENES, steps=steps))
    a, b, c = ((tmp_path / name / "encoder" / "encoder.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_goes_on_from_an_encoder_folder(tmp_path: Path, decoder_folder: Path) -> None:
    first = config(tmp_path / "first", decoder_folder, SCENES, steps=1)
    pretrain_image_encoder(first)
    still = replace(first.train, learning_rates={"encoder": 0, "text": 1e-3})
    weights = replace(first.encoder, weights=tmp_path / "first" / "encoder")
    pretrain_image_encoder(replace(first, run_dir=tmp_path / "more", encoder=weights, train=still))
    first_tensors, more = (load_file(tmp_path / name / "encoder" / "encoder.safetensors") for name in ("first", "more"))
    assert first_tensors.keys() == more.keys()
    # The tile-specific positions are the local ones stretched anew, of bf16 this time.
    assert all(torch.equal(t, more[name]) for name, t in first_tensors.items() if "tiled" not in name)


def test_captioning_beside_contrast_trains_another_encoder(tmp_path: Path, decoder_folder: Path) -> None:
    plain = config(tmp_path / "plain", decoder_folder, SCENES)
    both = replace(plain, run_dir=tmp_path / "both", caption_weight=2.0)
    results = [pretrain_image_encoder(one) for one in (plain, both)]
    assert results[0].metrics.keys() == RETRIEVAL and results[1].metrics.keys() == RETRIEVAL | {"caption_loss"}
    assert 0 < results[1].metrics["caption_loss"] < 20
    saved = [(tmp_path / name / "encoder" / "encoder.safetensors").read_bytes() for name in ("plain", "both")]
    assert saved[0] != saved[1] and len(saved[0]) == len(saved[1])


def test_texts_say_what_the_pictures_show() -> None:
    pairs = ScenePairs(Tiling(TILE, 4), count=8, size=TILE, seed=0, mix=SceneMix(singles=0.5), captions=3)
    for index in range(8):
        scene = scene_sample(index, seed=0, split="train", size=TILE, mix=SceneMix(singles=0.5))[1]
        texts = pairs.sample(index, random.Random(index)).captions
        assert len(texts) == 3 and all(set(named_objects(text)) == scene.pairs for text in texts)


@pytest.mark.parametrize("kind", ["scenes", "folder"])
def test_several_captions_of_a_picture_are_learnt_in_one_step(
    kind: str, tmp_path: Path, decoder_folder: Path, captions_folder: Path
) -> None:
    one = config(tmp_path / "one", decoder_folder, SCENES if kind == "scenes" else str(captions_folder))
    for count in (1, 2):
        data = replace(one.data, captions=count)
        found = pretrain_image_encoder(replace(one, run_dir=tmp_path / str(count), data=data))
        assert round(found.tokens_per_second * found.seconds) == 3 * 4 * count  # the loss counts texts


def test_a_decoder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"decoder {tmp_path}: no usable tokenizer"):
        pretrain_image_encoder(config(tmp_path / "run", tmp_path, SCENES))


def test_an_encoder_of_other_sizes_is_refused(tmp_path: Path, decoder_folder: Path) -> None:
    pretrain_image_encoder(config(tmp_path / "run", decoder_folder, SCENES, steps=1))
    other = ImageEncoder(replace(EncoderOptions(**ENCODER), width=32))
    with pytest.raises(UserError, match="does not fit the encoder's sizes"):
        load_encoder(other, tmp_path / "run" / "encoder")
    with pytest.raises(UserError, match="expected a folder written by pretrain_image_encoder"):
        load_encoder(other, tmp_path)
