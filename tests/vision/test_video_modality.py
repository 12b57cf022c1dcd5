"""Clips as a modality: what they leave alone, what sees what, and features that are the same from the cache."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from multimodal.batch import Sample
from multimodal.data.feature_cache import FeatureCache
from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from tests.allocated import peak_allocated
from tests.tiny_models import CONFIG, TILE, VIDEO, ask, clip_file, open_gates, picture, tiny_model, tiny_video_model
from vision.clip import read_clip
from vision.clip_frames import ClipFrames, backwards, middle_frame
from vision.image_adapter import ImageAdapterConfig
from vision.video_adapter import VideoAdapterConfig
from vision.video_modality import VideoConfig, VideoModality


def video(model: MultimodalModel) -> VideoModality:
    modality = model.modalities["video"]
    assert isinstance(modality, VideoModality)
    return modality


def frames(count: int, *, seed: int = 0, size: int = TILE) -> list[Image.Image]:
    return [picture(size, size, seed=50 * seed + i) for i in range(count)]


@torch.no_grad()
def logits(model: MultimodalModel, samples: Sequence[Sample]) -> list[Tensor]:
    """Logits [T, V] of each sample's own tokens."""
    batch = model.collate(samples)
    out = model.decoder(
        batch.input_ids, batch.attention_mask, memory=model.memory(batch), inserted=model.inserted(batch)
    )
    return [row[: int(mask.sum())] for row, mask in zip(out, batch.attention_mask, strict=True)]


def said(model: MultimodalModel, *parts: Any) -> Tensor:
    return logits(model, [model.sample(ask(*parts), "A fox.")])[0]


# ---- configuration and places ---------------------------------------------------------------------------------------


def test_a_configuration_survives_json() -> None:
    config = replace(VIDEO, max_tiles=2, stretch=True, to_image_layers=True, frames_at_once=3)
    assert VideoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(UserError, match="expected what save_pretrained wrote"):
        VideoConfig.from_dict({"frames": 3})


def test_layers_stand_before_every_so_many_image_layers() -> None:
    config = replace(CONFIG, adapter=ImageAdapterConfig(cross_layers=4))
    model = tiny_model(config)
    model.add("video", replace(VIDEO, adapter=replace(VIDEO.adapter, every=2)))
    assert list(model.modalities["image"].adapter.layers) == ["0", "1", "2", "3"]  # type: ignore[union-attr, arg-type]
    assert list(video(model).adapter.layers) == ["1", "3"]
    assert model.decoder.seam.order == ["video", "image"]


def test_video_needs_an_image_modality() -> None:
    model = tiny_model()
    bare = MultimodalModel(model.decoder, model.tokenizer, decoder_name="tiny")
    with pytest.raises(UserError, match="'video' builds on 'image'"):
        bare.add("video", VIDEO)


def test_the_image_parts_are_not_its_own() -> None:
    model = tiny_video_model()
    assert not any("encoder" in name for name, _ in video(model).named_parameters())
    names = [name for named in video(model).parts().values() for name, _ in named]
    assert sorted(names) == sorted(name for name, _ in video(model).named_parameters())
    everything = [id(p) for named in model.parts().values() for _, p in named]
    assert len(everything) == len(set(everything))


# ---- what stays as it is --------------------------------------------------------------------------------------------


def test_captions_of_pictures_are_unchanged_to_the_bit() -> None:
    plain, grafted = tiny_model(), tiny_video_model()
    for parts in ((picture(2 * TILE, TILE), "What is it?"), ("Who?",)):
        assert torch.equal(said(plain, *parts), said(grafted, *parts))
    samples = [model.sample(ask(picture(), "What?")) for model in (plain, grafted)]
    options = {"num_beams": 2, "max_new_tokens": 6}
    assert plain.generate(samples[:1], **options) == grafted.generate(samples[1:], **options)


def test_a_new_adapter_changes_nothing_until_its_gates_move() -> None:
    model, clip = tiny_video_model(), frames(6)
    closed = tiny_model()
    closed.add("video", VIDEO)
    closed.eval()
    bare = closed.decoder(closed.collate([closed.sample(ask(clip, "Who?"), "A fox.")]).input_ids)[0]
    assert torch.equal(said(closed, clip, "Who?"), bare)
    assert not torch.allclose(said(model, clip, "Who?"), bare, atol=1e-3)


# ---- what sees what -------------------------------------------------------------------------------------------------


def test_begun_as_the_image_adapter_it_reads_a_still_clip_as_that_reads_the_picture() -> None:
    model, still = tiny_model(), picture()
    open_gates(model.modalities["image"].adapter)  # type: ignore[union-attr, arg-type]
    tokens = model.modalities["image"].encoder.tokens_per_tile  # type: ignore[union-attr]
    aggregator = replace(VIDEO.adapter.aggregator, start="frames", latents=tokens, group=6)
    model.add("video", replace(VIDEO, adapter=replace(VIDEO.adapter, aggregator=aggregator, every=1)))
    modality = video(model)
    modality.adapter.begin_as(modality.image.adapter)
    clip = modality.prepare([still] * 6)
    assert len(clip) == 6
    as_clip, as_picture = (model.collate([model.sample(ask(part), "A fox.")]) for part in ([still] * 6, still))
    (found,), (expected,) = (model.memory(batch).by_adapter.values() for batch in (as_clip, as_picture))
    assert found.keys.keys() == expected.keys.keys()
    for layer in expected.keys:
        torch.testing.assert_close(found.keys[layer], expected.keys[layer], atol=2e-2, rtol=2e-2)  # kept in bf16
        torch.testing.assert_close(found.values[layer], expected.values[layer], atol=2e-2, rtol=2e-2)
    copied, given = modality.adapter.layers.state_dict(), modality.image.adapter.layers.state_dict()
    assert all(torch.equal(copied[name], given[name]) for name in given)
    with pytest.raises(UserError, match="start is latents: expected frames"):
        video(tiny_video_model()).adapter.begin_as(modality.image.adapter)


def test_a_clip_is_the_same_alone_and_in_a_ragged_batch() -> None:
    model = tiny_video_model()
    samples = [
        model.sample(ask(frames(6), "Who?"), "A fox."),
        model.sample(ask(frames(3, seed=1), frames(1, seed=2), "Where is it now?"), "There."),
        model.sample(ask("No clip?"), "None."),
        model.sample(ask(picture(2 * TILE, TILE), "And here?"), "A dog."),
        model.sample(ask(picture(seed=9), frames(5, seed=3), "Both?"), "Both."),
    ]
    together = logits(model, samples)
    for sample, found in zip(samples, together, strict=True):
        torch.testing.assert_close(found, logits(model, [sample])[0], atol=2e-4, rtol=1e-4)


def test_text_before_a_clip_does_not_see_it() -> None:
    model = tiny_video_model()
    a, b = (said(model, "Before.", frames(6, seed=s), "After.") for s in (0, 1))
    changed = (a != b).any(-1).nonzero()[:, 0]
    prompt = model.sample(ask("Before.", frames(1), "After.")).turns[0].prompt
    assert changed[0] == prompt.index(model.vocabulary.placeholder_ids["video"])


def test_order_content_and_number_of_frames_matter() -> None:
    model, clip = tiny_video_model(), frames(6)
    answers = [said(model, some, "Who?") for some in (clip, clip[::-1], clip[:3], frames(6, seed=4))]
    assert all(not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(answers) for b in answers[:i])


def test_image_layers_read_a_clip_only_if_told_to_and_no_picture_is_there() -> None:
    shown = tiny_video_model(replace(VIDEO, to_image_layers=True))
    closed = tiny_video_model()
    clip, still = frames(6), picture(seed=8)
    assert not torch.allclose(said(shown, clip, "Who?"), said(closed, clip, "Who?"), atol=1e-4)
    torch.testing.assert_close(
        said(shown, still, clip, "Who?"), said(closed, still, clip, "Who?"), atol=1e-4, rtol=1e-4
    )
    samples = [shown.sample(ask(*parts, "Who?"), "A fox.") for parts in ((still, clip), (clip,), (still,))]
    for sample, found in zip(samples, logits(shown, samples), strict=True):
        torch.testing.assert_close(found, logits(shown, [sample])[0], atol=2e-4, rtol=1e-4)


def test_only_the_video_parts_learn() -> None:
    model = tiny_video_model().train()
    for part, named in model.parts().items():
        for _, parameter in named:
            parameter.requires_grad_(part in ("aggregator", "video", "video_gates"))
    model.loss(model.collate([model.sample(ask(frames(6), "Who?"), "A fox.")]))[0].backward()
    with_gradient = {part for part, named in model.parts().items() if any(p.grad is not None for _, p in named)}
    assert with_gradient == {"aggregator", "video", "video_gates"}
    assert all(p.grad is not None and p.grad.any() for _, p in model.parts()["video_gates"])


def test_frames_are_encoded_alike_however_many_at_once() -> None:
    model = tiny_video_model()
    one = video(model)
    item = one.prepare(frames(6))
    whole = one.encode(item)
    one.config = replace(one.config, frames_at_once=2)
    torch.testing.assert_close(one.encode(item).tokens, whole.tokens, atol=1e-2, rtol=1e-2)
    assert whole.lengths == (5,) * 6


def test_memory_grows_with_the_features_that_are_kept_and_not_with_the_frames() -> None:
    one = video(tiny_video_model(replace(VIDEO, frames=64)))
    clips = [one.prepare(frames(1, size=2 * TILE) * count) for count in (32, 64)]
    few, many = (one.encode(clip).tokens.nbytes for clip in clips)
    assert one.encode(clips[1]).lengths == (4 * 5,) * 64 and many == 2 * few

    def growth(at_once: int) -> int:
        one.config = replace(one.config, frames_at_once=at_once)
        short, long = (peak_allocated(partial(one.encode, clip)) for clip in clips)
        return long - short

    assert growth(4) == pytest.approx(many - few, rel=0.05)
    assert growth(64) > 10 * (many - few)  # else the test would show nothing


def test_encoding_is_in_eval_mode_and_leaves_the_mode_alone() -> None:
    model = tiny_model(replace(CONFIG, encoder=replace(CONFIG.encoder, drop_path=0.5)))
    model.add("video", VIDEO)
    item = video(model).prepare(frames(6))
    model.train()
    assert torch.equal(video(model).encode(item).tokens, video(model).encode(item).tokens)
    assert model.modalities["image"].encoder.training  # type: ignore[union-attr]


# ---- sampling and controls ------------------------------------------------------------------------------------------


def test_other_numbers_of_frames_need_no_other_weights(tmp_path: Path) -> None:
    model, path = tiny_video_model(), clip_file(tmp_path / "a.mp4", frames=12)
    assert len(video(model).prepare(path)) == 6
    video(model).resample(frames=10, group=5)
    item = video(model).prepare(path)
    assert len(item) == 10 and video(model).adapter.aggregator.output_length(10) == 2 * 3
    assert VideoConfig.from_dict(video(model).config.to_dict()).adapter.aggregator.group == 5
    said(model, path, "Who?")


@pytest.mark.parametrize("encoded", [False, True])
def test_controls_change_what_they_say_and_no_more(encoded: bool) -> None:
    model = tiny_video_model()
    item = video(model).prepare(frames(6))
    if encoded:
        item = item.with_features(video(model).encode(item))
    turned, middle, blank = item.reordered(backwards), item.reordered(middle_frame), video(model).blank(item)
    assert all(torch.equal(a, b) for a, b in zip(turned.frames, item.frames[::-1], strict=True))
    assert all(torch.equal(frame, item.frames[3]) for frame in middle.frames)
    assert not any(frame.any() for frame in blank.frames) and not blank.encoded
    for changed in (turned, middle, blank):
        assert torch.equal(changed.times, item.times) and len(changed) == 6


@pytest.mark.parametrize("motion", [False, True])
def test_controls_leave_no_motion_in_colours(motion: bool) -> None:
    model, shown = tiny_video_model(), frames(6)
    video(model).config = replace(video(model).config, motion=motion)
    for order in (backwards, middle_frame):
        found, expected = video(model).prepare(shown, order=order), video(model).prepare(order(shown))
        assert all(torch.equal(a, b) for a, b in zip(found.frames, expected.frames, strict=True))
    still = video(model).prepare(shown, order=middle_frame)
    assert all(torch.equal(frame, still.frames[0]) for frame in still.frames)


# ---- the cache ------------------------------------------------------------------------------------------------------


def loss(model: MultimodalModel, paths: Sequence[Path]) -> float:
    samples = [model.sample(ask(path, "Who?"), "A fox.") for path in paths]
    with torch.no_grad():
        return float(model.loss(model.collate(samples))[0])


def test_losses_are_identical_with_and_without_a_cache(tmp_path: Path) -> None:
    paths = [clip_file(tmp_path / f"{i}.mp4", frames=4 + 3 * i, seed=i) for i in range(3)]
    model = tiny_video_model()
    without = loss(model, paths)
    cache = FeatureCache(tmp_path / "cache", max_gb=1)
    video(model).use_cache(cache)
    assert [loss(model, paths) for _ in range(2)] == [without] * 2
    assert (cache.misses, cache.hits) == (3, 3)
    assert loss(model, paths[::-1][:2]) == loss(tiny_video_model(), paths[::-1][:2])


def test_an_entry_is_of_these_weights_this_sampling_and_this_file(tmp_path: Path) -> None:
    path = clip_file(tmp_path / "a.mp4", frames=12)
    model, cache = tiny_video_model(), FeatureCache(tmp_path / "cache", max_gb=1)
    keys = set()

    def key() -> str:
        video(model).use_cache(cache)
        return video(model).prepare(path).key

    keys.add(key())
    assert key() in keys
    video(model).resample(frames=5, group=4)
    keys.add(key())
    open_gates(model.modalities["image"], gate=0.3)
    keys.add(key())
    clip_file(path, frames=12, seed=3)
    keys.add(key())
    assert len(keys) == 4 and "" not in keys
    assert video(model).prepare(frames(4)).key == "", "what is no file has no identity"


# ---- saved ----------------------------------------------------------------------------------------------------------


def test_a_part_of_a_clip_has_its_frames_and_times_of_its_own(tmp_path: Path) -> None:
    """The frames of the whole, in which the part alone goes from 0 to 1; the cache tells the two apart."""
    model = tiny_video_model()
    modality = video(model)
    path = clip_file(tmp_path / "a.mp4", seed=1)
    seconds = read_clip(path, count=modality.config.frames).seconds
    start, end = seconds[1], seconds[-2]
    whole, part = modality.prepare(path), modality.prepare(path, between=(start, end))
    assert len(part) == len(whole) - 2 and (part.times[0], part.times[-1]) == (0.0, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(part.frames, whole.frames[1:-1], strict=True))
    modality.use_cache(FeatureCache(tmp_path / "cache", max_gb=1))
    encoded = [modality.encode(modality.prepare(path, between=between)) for between in (None, (start, end))]
    again = modality.prepare(path, between=(start, end))
    assert again.encoded and torch.equal(again.features().tokens, encoded[1].tokens)
    assert again.features().lengths == encoded[0].lengths[1:-1]
    with pytest.raises(UserError, match=r"no frame between 90\.00 and 91\.00 s"):
        modality.prepare(path, between=(90.0, 91.0))


def test_a_saved_adapter_says_the_same(tmp_path: Path, decoder_folder: Path) -> None:
    model = tiny_video_model(name=str(decoder_folder))
    model.save_pretrained(tmp_path / "adapter")
    again = MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu")
    for parts in ((frames(6), "Who?"), (picture(), frames(3), "Who?"), (picture(), "Who?")):
        assert torch.equal(said(again, *parts), said(model, *parts))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="frames 0"):
        VideoConfig(frames=0)
    with pytest.raises(UserError, match="every 0"):
        tiny_model().add("video", replace(VIDEO, adapter=VideoAdapterConfig(every=0)))


def test_a_clip_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_text("no")
    with pytest.raises(UserError, match=r"no\.mp4"):
        tiny_video_model().sample(ask(tmp_path / "no.mp4", "Who?"))
    assert isinstance(video(tiny_video_model()).prepare(frames(1)), ClipFrames)
