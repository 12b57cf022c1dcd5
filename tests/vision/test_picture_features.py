"""Features of pictures kept on disk: the same losses as without, and never those of another encoder or file."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from multimodal.batch import Sample
from multimodal.data.feature_cache import FeatureCache
from multimodal.hashing import weights_sha256
from multimodal.model import MultimodalModel
from tests.tiny_models import CONFIG, TILE, ask, picture, tiny_model
from vision.caption_data import CaptionImages
from vision.caption_tables import CaptionRecord
from vision.image_modality import ImageModality
from vision.picture_features import EncodedPicture, KeyedTiles, encoder_key
from vision.tiling import Augment, Tiles


def image(model: MultimodalModel) -> ImageModality:
    modality = model.modalities["image"]
    assert isinstance(modality, ImageModality)
    return modality


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Pictures of 1, 2 and 4 tiles."""
    found = []
    for seed, size in enumerate(((TILE, TILE), (2 * TILE, TILE), (2 * TILE, 2 * TILE))):
        found.append(tmp_path / f"{seed}.png")
        picture(*size, seed=seed).save(found[-1])
    return found


def samples(model: MultimodalModel, paths: list[Path]) -> list[Sample]:
    chats = [ask(path, "Who?") for path in paths] + [ask("Repeat after me: one."), ask(paths[0], "and", paths[2])]
    return [model.sample(chat, "A fox.") for chat in chats]


def loss(model: MultimodalModel, chosen: list[Sample]) -> Any:
    return model.loss(model.collate(chosen))[0]


def test_losses_and_gradients_are_the_same_from_the_cache_to_the_bit(tmp_path: Path, paths: list[Path]) -> None:
    model = tiny_model()
    image(model).encoder.requires_grad_(False)
    plain = loss(model, samples(model, paths))
    cache = FeatureCache(tmp_path / "cache", max_gb=1)
    image(model).use_cache(cache)
    found = []
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        total = loss(model, samples(model, paths))
        total.backward()
        found.append((total.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    assert (cache.misses, cache.hits) == (5, 5)
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    torch.testing.assert_close(found[0][0], plain.detach(), atol=1e-5, rtol=1e-6)  # one by one, not as a batch
    with torch.no_grad():
        assert torch.equal(
            loss(model, samples(model, paths)[1:2]), loss(tiny_model(), samples(tiny_model(), paths)[1:2])
        )


def test_the_reference_shows_a_group_of_pictures_alike_from_the_cache(tmp_path: Path, paths: list[Path]) -> None:
    """Its placeholders see the pictures up to their own alone, also where the features are read from the disk."""
    config = replace(CONFIG, encoder=replace(CONFIG.encoder, numerics="reference"))
    losses = {}
    for kept in (False, True):
        model = tiny_model(config)
        if kept:
            image(model).use_cache(FeatureCache(tmp_path / "cache", max_gb=1))
        sample = model.sample(ask(paths[0], paths[1], paths[2], "Who?"), "A fox.")
        memory = model.memory(model.collate([sample]))
        assert memory is not None and memory.by_adapter["image"].memory_column is not None
        losses[kept] = loss(model, [sample]).detach()
    torch.testing.assert_close(losses[True], losses[False], atol=1e-5, rtol=1e-6)


def test_the_encoder_does_not_run_for_what_is_kept(tmp_path: Path, paths: list[Path]) -> None:
    model = tiny_model()
    image(model).use_cache(FeatureCache(tmp_path / "cache", max_gb=1))
    calls: list[int] = []
    image(model).encoder.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
    for _ in range(2):
        loss(model.train(), samples(model, paths))
    # A picture that two samples of the first batch showed was computed for both.
    assert calls == [1] * 5 and image(model).encoder.training
    assert {type(image(model).prepare(path)) for path in paths} == {EncodedPicture}
    mixed = [picture(seed=5), *paths]  # one that is no file beside the others
    assert type(image(model).prepare(mixed[0])) is Tiles
    chosen = [model.sample(ask(source, "Who?"), "A fox.") for source in mixed]
    with torch.no_grad():
        alone = torch.stack([loss(model, [sample]) for sample in chosen]).sum()
        torch.testing.assert_close(loss(model, chosen), alone, atol=1e-4, rtol=1e-5)


def test_an_entry_is_of_these_weights_this_precision_and_this_file(tmp_path: Path, paths: list[Path]) -> None:
    model, cache = tiny_model(), FeatureCache(tmp_path / "cache", max_gb=1)

    def key() -> str:
        image(model).use_cache(cache, precision="bf16" if len(keys) == 1 else "fp32")
        item = image(model).prepare(paths[0])
        assert isinstance(item, KeyedTiles)
        return item.key

    keys: set[str] = set()
    keys.add(key())
    keys.add(key())
    with torch.no_grad():
        next(image(model).encoder.parameters()).add_(1)
    keys.add(key())
    picture(seed=9).save(paths[0])
    keys.add(key())
    assert len(keys) == 4


def test_blank_pictures_and_a_lost_cache(tmp_path: Path, paths: list[Path]) -> None:
    model = tiny_model()
    image(model).use_cache(FeatureCache(tmp_path / "cache", max_gb=1))
    loss(model, samples(model, paths))
    item = image(model).prepare(paths[1])
    blank = image(model).blank(item)
    assert type(blank) is Tiles and blank.pixels.shape == (2, 3, TILE, TILE) and not blank.pixels.any()
    batch = model.collate(samples(model, paths))
    image(model).use_cache(None)
    with pytest.raises(ValueError, match="use_cache"):
        model.loss(batch)


def test_captions_are_drawn_alike_with_and_without_and_augmented_pictures_are_not_kept(
    tmp_path: Path, paths: list[Path]
) -> None:
    model = tiny_model()
    image(model).use_cache(FeatureCache(tmp_path / "cache", max_gb=1))
    records = [CaptionRecord(path, ("one", "two", "three"), str(path)) for path in paths]
    draws = []
    for prepare in (None, image(model).prepare):
        data = CaptionImages(records, image(model).tiling, augment=Augment(), prepare=prepare)
        rng = random.Random(1)
        found = [data.sample(i, rng) for i in range(3)]
        draws.append(([one and one.draw(1, rng) for one in found], rng.random()))
        assert found[0] is not None and isinstance(found[0].images[0], KeyedTiles) == (prepare is not None)
    assert draws[0] == draws[1]
    data = CaptionImages(records, image(model).tiling, augment=Augment(flip=True), prepare=image(model).prepare)
    found = data.sample(0, random.Random(1))
    assert found is not None and type(found.images[0]) is Tiles


def test_equal_weights_read_otherwise_have_other_entries() -> None:
    taps = [replace(CONFIG, encoder=replace(CONFIG.encoder, layers=3, taps=(number,))) for number in (1, 2)]
    first, second = (image(tiny_model(config)).encoder for config in taps)
    second.load_state_dict(first.state_dict())
    assert weights_sha256(first) == weights_sha256(second) and encoder_key(first) != encoder_key(second)
