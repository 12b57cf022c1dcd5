"""Encoders of the hub in an adapter folder: named while nobody trained them, copied once somebody did."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from tests.tiny_models import TILE, ask, picture, tiny_model
from vision.image_modality import EncoderOptions, ImageConfig

PLACE = "modalities.image.encoder.model"


def save_clip(folder: Path, *, seed: int = 0) -> Path:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(seed)
    CLIPVisionModel(CLIPVisionConfig(**shape, num_attention_heads=2, patch_size=8, image_size=TILE)).save_pretrained(
        folder
    )
    return folder


def model_with(clip: Path, decoder: Path) -> MultimodalModel:
    return tiny_model(ImageConfig(encoder=EncoderOptions(name=str(clip))), opened=False, name=str(decoder))


def said(model: MultimodalModel) -> str:
    return model.chat(ask(picture(), "Describe the image."), max_new_tokens=5)


def first_weight(model: MultimodalModel) -> torch.nn.Parameter:
    encoder: Any = model.modalities["image"].encoder
    return next(encoder.model.parameters())


def test_an_encoder_that_nobody_trained_is_named_and_not_copied(decoder_folder: Path, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    model = model_with(clip, decoder_folder)
    model.save_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter.safetensors")
    assert not any(name.startswith(PLACE) for name in tensors)
    assert any(name.startswith("modalities.image.encoder.tap_norms") for name in tensors), "these are Graft's own"
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["borrowed"][PLACE]["name"] == str(clip)
    assert f"`{clip}` is not in this folder" in (tmp_path / "adapter" / "README.md").read_text()
    loaded = MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert torch.equal(first_weight(loaded), first_weight(model)) and said(loaded) == said(model)


def test_other_weights_of_that_name_are_refused(decoder_folder: Path, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    model_with(clip, decoder_folder).save_pretrained(tmp_path / "adapter")
    save_clip(clip, seed=1)
    with pytest.raises(UserError, match=r"was trained on encoder .*clip .*; expected the same weights") as error:
        MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert "\n" not in str(error.value)


def test_a_trained_encoder_is_copied_and_wins_over_its_name(decoder_folder: Path, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    model = model_with(clip, decoder_folder)
    with torch.no_grad():
        first_weight(model).add_(0.5)
    model.save_pretrained(tmp_path / "adapter")
    save_clip(clip, seed=1)  # whatever the name gives now
    loaded = MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert torch.equal(first_weight(loaded), first_weight(model)) and said(loaded) == said(model)
    loaded.save_pretrained(tmp_path / "again")
    first, again = (load_file(tmp_path / name / "adapter.safetensors") for name in ("adapter", "again"))
    assert first.keys() == again.keys() and all(torch.equal(t, again[name]) for name, t in first.items())


def test_weights_that_the_name_does_not_give_are_copied(decoder_folder: Path, tmp_path: Path) -> None:
    """A pooler that is made up, which no feature needs: the next time it would be another one."""
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    vit = tmp_path / "vit"
    ViTModel(ViTConfig(**shape, num_attention_heads=2, patch_size=8, image_size=TILE)).save_pretrained(vit)
    published = load_file(vit / "model.safetensors")
    without = {name: tensor for name, tensor in published.items() if "pooler" not in name}
    assert len(without) < len(published)
    save_file(without, vit / "model.safetensors", metadata={"format": "pt"})
    model_with(vit, decoder_folder).save_pretrained(tmp_path / "adapter")
    assert any(name.startswith(PLACE) for name in load_file(tmp_path / "adapter" / "adapter.safetensors"))
    MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu")


def test_a_pickled_encoder_is_refused(decoder_folder: Path, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    torch.save(load_file(clip / "model.safetensors"), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"vision encoder .*clip: its weights are a pickle \(pytorch_model\.bin\)"
    ) as error:
        model_with(clip, decoder_folder)
    assert "\n" not in str(error.value)
