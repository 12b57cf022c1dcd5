"""Contrastive pre-training from data to a folder that captioning starts from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multimodal.errors import UserError
from multimodal.train.config import TrainConfig
from tests.tiny_models import ENCODER, TILE
from vision.caption_training import SCENES, DataConfig
from vision.contrastive_training import ContrastiveConfig, pretrain_image_encoder
from vision.encoder import ImageEncoder
from vision.image_modality import EncoderOptions, load_encoder

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


def test_an_encoder_of_other_sizes_is_refused(tmp_path: Path, decoder_folder: Path) -> None:
    pretrain_image_encoder(config(tmp_path / "run", decoder_folder, SCENES, steps=1))
    other = ImageEncoder(replace(EncoderOptions(**ENCODER), width=32))
    with pytest.raises(UserError, match="does not fit the encoder's sizes"):
        load_encoder(other, tmp_path / "run" / "encoder")
    with pytest.raises(UserError, match="expected a folder written by pretrain_image_encoder"):
        load_encoder(other, tmp_path)
