"""Folders on disk that many tests read and none may change."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.tiny_models import TILE, picture, save_decoder, tiny_model


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder with its tokenizer."""
    return save_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def adapter_folder(decoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with open gates for that decoder."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    tiny_model(name=str(decoder_folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def captions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with two captions each, in the splits train (4), dev (2) and test (3)."""
    folder = tmp_path_factory.mktemp("captions")
    (folder / "images").mkdir()
    for i in range(6):
        picture(TILE * (1 + i % 2), TILE, seed=i).save(folder / "images" / f"{i}.png")
    things = ("fox", "dog", "red circle", "blue square", "friend", "user")
    for split, numbers in {"train": range(4), "dev": (4, 5), "test": (0, 3, 5)}.items():
        lines = [f"{i}.png\t{text}" for i in numbers for text in (f"There is a {things[i]}.", f"A small {things[i]}.")]
        (folder / f"{split}.tsv").write_text("\n".join(["image\tcaption", *lines]) + "\n")
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no way to reach it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"
