"""Lip reading frame by frame: labels at their moments, clips that do not see each other, an encoder that is saved."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multimodal.data.word_times import read_word_times
from tests.tiny_models import ENCODER, train_config
from tests.vision.made_grid import SENTENCES, make_grid
from vision.clip_layouts import read_clips
from vision.encoder import ImageEncoder, ImageEncoderConfig
from vision.encoder_folder import ENCODER_FILE
from vision.image_modality import EncoderOptions
from vision.lip_reading import WORDS, FrameWordTask, collate_frames, frame_labels, slot_accuracy
from vision.lip_training import LipFrames, LipReadingConfig, pretrain_lip_encoder
from vision.tiling import Tiling


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return make_grid(tmp_path / "grid")


def lips(folder: Path, split: str = "dev", **options: float) -> LipFrames:
    spoken = read_word_times(folder / "word_times.tsv")
    return LipFrames(read_clips(folder, split=split), spoken, Tiling(16, 1, True), frames=6, motion=True, **options)


def test_labels_are_what_is_spoken_at_the_moment(grid: Path) -> None:
    spoken = [("bin", 0.5, 1.0), ("blue", 1.0, 1.2)]
    assert [WORDS[i] for i in frame_labels((0.0, 0.5, 0.99, 1.0, 1.2), spoken)] == ["sil", "bin", "bin", "blue", "sil"]
    sample = lips(grid, "train").sample(0, random.Random(0))
    assert sample is not None and sample.words == tuple(SENTENCES["a"][1].split())
    assert [WORDS[i] for i in sample.labels] == ["sil", *SENTENCES["a"][1].split()[:5]]


def test_a_clip_is_read_by_itself(grid: Path) -> None:
    torch.manual_seed(0)
    task = FrameWordTask(ImageEncoder(ImageEncoderConfig(**ENCODER)), width=8).eval()
    first, second = (lips(grid).sample(i, random.Random(0)) for i in range(2))
    assert first is not None and second is not None
    short = replace(second, tiles=second.tiles[:3], labels=second.labels[:3])
    together = task(collate_frames([first, short]))
    alone = torch.cat([task(collate_frames([clip])) for clip in (first, short)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert task.loss(collate_frames([first, short]))[1] == 9


def test_frames_that_are_kept_are_not_read_again_and_are_the_same(grid: Path) -> None:
    fresh = lips(grid).sample(0, random.Random(0))
    room_for_one = 6 * 3 * 16 * 16 / 1e6
    data = lips(grid, keep_mb=room_for_one)
    assert data.sample(0, random.Random(0)) is not None and data.sample(1, random.Random(0)) is not None
    for name in "bc":
        (grid / "clips" / f"{name}.mp4").unlink()
    again = data.sample(0, random.Random(0))
    assert fresh is not None and again is not None and data.sample(1, random.Random(0)) is None
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(fresh.tiles, again.tiles, strict=True))


def test_slots_are_decided_among_their_own_words(grid: Path) -> None:
    samples = [lips(grid).sample(i, random.Random(0)) for i in range(2)]
    batch = collate_frames([sample for sample in samples if sample is not None])
    sure = torch.nn.functional.one_hot(batch.labels, len(WORDS)) * 20.0
    found = slot_accuracy(sure, batch)
    assert found["command"] == found["digit"] == [True, True] and set(found) >= {"colour", "adverb"}
    assert slot_accuracy(-sure, batch)["command"] == [False, False]


def test_an_encoder_is_trained_and_saved(grid: Path, tmp_path: Path) -> None:
    config = LipReadingConfig(
        run_dir=tmp_path / "run",
        source=grid,
        train=train_config(learning_rates={"encoder": 1e-3, "head": 1e-3}),
        encoder=EncoderOptions(**ENCODER),
        frames=6,
        head_width=8,
    )
    result = pretrain_lip_encoder(config)
    assert {"colour_accuracy", "letter_accuracy", "frame_accuracy"} <= result.metrics.keys()
    ImageEncoder(ImageEncoderConfig(**ENCODER)).load_state_dict(load_file(tmp_path / "run" / "encoder" / ENCODER_FILE))
