"""Finding pictures, captioning them with broken ones among them, and the picture of where each word looked."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from tests.tiny_models import TILE, ask, picture, tiny_model
from vision.caption_pictures import attention_picture, caption_pictures, find_pictures
from vision.captioning import CAPTION_PROMPT
from vision.image_modality import EncoderOptions, ImageConfig

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
}


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """Shared; not to be changed."""
    return tiny_model()


# ---- find_pictures ------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`b.png`, `a.JPG`, `notes.txt`, `deep/er/c.png`, `empty/`; the working directory is their folder."""
    for name in ("b.png", "a.JPG", "deep/er/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["."], ["a.JPG", "b.png", "deep/er/c.png"]),
        (["b.png", "."], ["b.png", "a.JPG", "deep/er/c.png"]),
        (["*.png"], ["b.png"]),
        (["**/*.png"], ["b.png", "deep/er/c.png"]),
        (["deep/../*.png"], ["deep/../b.png"]),
        (["deep", "b.png", "b.png"], ["deep/er/c.png", "b.png"]),
        (["notes.txt"], ["notes.txt"]),
    ],
)
def test_files_folders_and_globs(tree: Path, paths: list[str], expected: list[str]) -> None:
    assert find_pictures(paths) == [Path(name) for name in expected]
    absolute = [os.path.join(tree, path) for path in paths]
    assert [p.resolve() for p in find_pictures(absolute)] == [(tree / name).resolve() for name in expected]


def test_a_name_that_looks_like_a_glob_is_a_file_where_there_is_one(tree: Path) -> None:
    picture().save(tree / "[b].png")
    assert find_pictures(["[b].png"]) == [Path("[b].png")]


@pytest.mark.parametrize("path", ["none.png", "empty", "*.gif", "**none.png", "no/such/folder"])
def test_what_matches_nothing_is_named(tree: Path, path: str) -> None:
    with pytest.raises(UserError, match="no picture found; expected a picture file, a folder") as error:
        find_pictures(["b.png", path])
    assert str(error.value).startswith(f"{path}: ")


def test_no_path_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="no picture given"):
        find_pictures([])


# ---- caption_pictures ---------------------------------------------------------------------------------------------


def test_captions_come_in_order_with_errors_in_their_places(model: MultimodalModel, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"GIF89a, or is it?")
    good = [picture(TILE * n, TILE, seed=n) for n in (1, 2, 3)]
    given = [good[0], tmp_path / "bad.jpg", good[1], tmp_path / "gone.jpg", good[2]]
    for batch_size in (1, 2, 16):
        found = list(caption_pictures(model, given, batch_size=batch_size, max_new_tokens=5))
        assert [i for i, _ in found] == [0, 1, 2, 3, 4]
        alone = [model.chat(ask(image, CAPTION_PROMPT), max_new_tokens=5) for image in good]
        assert [found[i][1] for i in (0, 2, 4)] == alone
        assert all(isinstance(found[i][1], UserError) for i in (1, 3)) and "bad.jpg" in str(found[1][1])


def test_nothing_but_broken_pictures(model: MultimodalModel, tmp_path: Path) -> None:
    ((at, error),) = caption_pictures(model, [tmp_path / "gone.jpg"])
    assert at == 0 and isinstance(error, UserError)


def test_the_prompt_is_asked(model: MultimodalModel) -> None:
    image = picture()
    ((_, text),) = caption_pictures(model, [image], prompt="Who saw whom?", max_new_tokens=6)
    assert text == model.chat(ask(image, "Who saw whom?"), max_new_tokens=6)


# ---- attention_picture --------------------------------------------------------------------------------------------


def drawn(model: MultimodalModel, image: Image.Image, caption: str) -> torch.Tensor:
    made = attention_picture(model, image, caption)
    assert made.mode == "RGB"
    return torch.tensor(list(made.tobytes())).view(made.height, made.width, 3)


@pytest.mark.parametrize("size", [(TILE, TILE), (2 * TILE, TILE), (40, 40), (300, 20)])
def test_attention_is_drawn_once_per_word_at_any_number_of_tiles(model: MultimodalModel, size: tuple[int, int]) -> None:
    image = picture(*size)
    few, many = drawn(model, image, "a fox"), drawn(model, image, "a fox saw a dog and the red circle left of it")
    assert many.numel() > few.numel()
    other = drawn(model, image, "a dog")
    assert other.shape == few.shape and not torch.equal(other, few)


def test_attention_over_an_encoder_of_transformers(tmp_path: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**SHAPE)).save_pretrained(tmp_path / "clip")
    model = tiny_model(ImageConfig(encoder=EncoderOptions(name=str(tmp_path / "clip"))))
    assert drawn(model, picture(64, 32), "a fox").numel()
    SiglipVisionModel(SiglipVisionConfig(**SHAPE)).save_pretrained(tmp_path / "siglip")
    model = tiny_model(ImageConfig(encoder=EncoderOptions(name=str(tmp_path / "siglip"))))
    assert drawn(model, picture(64, 32), "a fox").numel()  # without a class token
    encoder: Any = model.modalities["image"].encoder  # type: ignore[union-attr]
    encoder.model.config.patch_size = 2
    with pytest.raises(UserError, match="16 tokens a tile: expected a token for each of 256 patches"):
        attention_picture(model, picture(64, 32), "a fox")
