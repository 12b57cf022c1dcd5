"""Clips as they come: what is odd is learnt from like any other, what is unusable is skipped, counted and reported."""

import struct
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import pytest

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from tests.tiny_models import ENCODER, VIDEO, tiny_video_model, train_config
from tests.vision.made_clips import TIMES, UNEVEN, write_clip
from tests.vision.test_video_training import RATES
from vision.clip_data import ClipDataConfig
from vision.clip_question import ClipQuestion, QuestionedClip
from vision.image_modality import EncoderOptions
from vision.video_answering import ClipSamples, ask_clips
from vision.video_training import VideoQAConfig, train_video_qa

FRAMES = VIDEO.frames


def cut(path: Path, share: float) -> None:
    """Keep the beginning of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def truncated(path: Path) -> None:
    cut(write_clip(path, "mjpeg", pixels="yuvj420p"), 0.5)


def wrong_duration(path: Path) -> None:
    data = write_clip(path).read_bytes()
    place = data.index(b"\x44\x89\x88") + 3  # the Duration element of Matroska
    path.write_bytes(data[:place] + struct.pack(">d", 1e6) + data[place + 8 :])


def without_frames(path: Path) -> None:
    data = write_clip(path, container={"movflags": "faststart"}).read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])


def sound_alone(path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        file.mux([*stream.encode(frame), *stream.encode()])


Make = Callable[[Path], object]
ODD: dict[str, tuple[Make, int]] = {  # how it is made, and the frames that come of it
    "truncated.mkv": (truncated, FRAMES),
    "one-frame.mp4": (lambda path: write_clip(path, times=TIMES[:1]), 1),
    "fewer-frames.mp4": (lambda path: write_clip(path, times=TIMES[:4]), 4),
    "wrong-duration.mkv": (wrong_duration, FRAMES),
    "4k.mp4": (lambda path: write_clip(path, "mpeg4", times=TIMES[:2], size=(3840, 2160)), 2),
    "10-bit.mkv": (lambda path: write_clip(path, pixels="yuv420p10le"), FRAMES),
    "odd-size.mp4": (lambda path: write_clip(path, "mpeg4", size=(47, 33)), FRAMES),
    "uneven.mp4": (lambda path: write_clip(path, times=UNEVEN), 5),  # one stands still for two of six moments
    "negative.mkv": (
        lambda path: write_clip(
            path, times=[t - Fraction(1, 2) for t in TIMES], container={"avoid_negative_ts": "disabled"}
        ),
        FRAMES,
    ),
}
UNUSABLE: dict[str, tuple[Make, str]] = {  # how it is made, and a word of the message
    "text.mp4": (lambda path: path.write_text("no video " * 99), "not a video"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "0 bytes"),
    "no-index.mp4": (lambda path: cut(write_clip(path), 0.7), "no video stream"),
    "no-frames.mp4": (without_frames, "none of its frames can be decoded"),
    "sound.mka": (sound_alone, "no video stream"),
    "gone.mp4": (lambda path: None, "no such file"),
}
WHO = ClipQuestion("subject", "Who?", "a fox")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unusual")
    for name, (make, _) in (ODD | UNUSABLE).items():
        make(folder / name)
    return folder


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """Shared; not to be changed."""
    return tiny_video_model()


def clips(folder: Path, *names: str) -> list[QuestionedClip]:
    return [QuestionedClip(folder / name, (WHO,), name) for name in names]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_clip_is_learnt_from(model: MultimodalModel, folder: Path, name: str) -> None:
    sample = ClipSamples(model, clips(folder, name)).sample(0, Random(0))
    assert sample is not None
    (frames,) = sample.media["video"]
    assert len(frames) == ODD[name][1]
    assert frames.times.min() >= 0 and frames.times.max() <= 1 and (frames.times.diff() > 0).all()
    loss, _ = model.loss(model.collate([sample]))
    assert loss.isfinite()


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_clip_is_skipped_and_counted_or_ends_the_run(
    model: MultimodalModel, folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    samples = ClipSamples(model, clips(folder, name))
    assert [samples.sample(0, Random(i)) for i in range(2)] == [None, None] and samples.broken.ids == {name}
    (line,) = caplog.messages  # said once
    assert name in line and UNUSABLE[name][1] in line and "expected" in line and "\n" not in line
    assert ask_clips(model, clips(folder, name)) == []
    with pytest.raises(UserError, match=UNUSABLE[name][1]):
        ClipSamples(model, clips(folder, name), on_error="fail").sample(0, Random(0))


def test_training_reports_how_many_were_skipped(folder: Path, tmp_path: Path, decoder_folder: Path) -> None:
    names = [name for name in ODD | UNUSABLE if name not in ("4k.mp4", "gone.mp4")]  # a table's clips must be there
    (folder / "train.tsv").write_text(
        "\n".join(["video\tquestion\tanswer", *(f"{name}\tWho?\ta fox" for name in names)])
    )
    config = VideoQAConfig(
        run_dir=tmp_path / "run",
        train=replace(train_config(learning_rates=RATES), steps=1, batch_size=len(names)),
        decoder=str(decoder_folder),
        encoder=EncoderOptions(**ENCODER),
        video=VIDEO,
        data=ClipDataConfig(source=str(folder), dev_count=0),
    )
    lines: list[str] = []
    _, result = train_video_qa(config, report=lines.append)
    assert result.skipped == len(UNUSABLE) - 1
    assert lines[0] == f"{len(UNUSABLE) - 1} samples with broken clips were skipped"
