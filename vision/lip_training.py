"""Pre-train an image encoder on filmed lips with a word label for each frame: the warm start of lip reading (GRID)."""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch

from multimodal.config import dump
from multimodal.data.broken import BrokenSamples
from multimodal.data.kept import Kept
from multimodal.data.word_times import WORD_TIMES, WordTimes, read_word_times
from multimodal.train.config import TrainConfig
from multimodal.train.loop import TrainResult, train
from vision.clip import read_clip
from vision.clip_layouts import read_clips
from vision.clip_motion import neighbours_as_colours
from vision.clip_question import QuestionedClip
from vision.clip_sampling import Clip
from vision.encoder import ImageEncoder
from vision.encoder_folder import save_encoder
from vision.image_modality import EncoderOptions
from vision.lip_reading import (
    WORDS,
    FrameWordTask,
    LabelledBatch,
    LabelledFrames,
    collate_frames,
    frame_labels,
    slot_accuracy,
)
from vision.tiling import Augment, Tiling


@dataclass(frozen=True, kw_only=True)
class LipReadingConfig:
    """Pre-train an image encoder on filmed lips."""

    run_dir: Path
    """The encoder is saved in its `encoder` subfolder."""
    train: TrainConfig
    source: Path
    """Folder in GRID's layout: transcripts.tsv, word_times.tsv, clips/."""
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    frames: int = 75
    """Frames sampled of a clip; GRID's clips have 75."""
    motion: bool = True
    """Show each frame with its neighbours in time as its colours; `--video.motion` must say the same afterwards."""
    head_width: int = 128
    flip: bool = True
    """Mirror half of the clips."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Random crops of this part of the area, the same for all frames of a clip."""
    keep_mb: float = 0.0
    """Megabytes of decoded frames of each split that are kept in memory for later epochs."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""


class LipFrames:
    """Clips as frames with labels.

    Args:
        clips: from `read_clips`.
        spoken: from `read_word_times`.
        augment: for training; one draw for all frames of a clip.
        keep_mb: megabytes of decoded frames that are kept.
    """

    def __init__(
        self,
        clips: list[QuestionedClip],
        spoken: WordTimes,
        tiling: Tiling,
        *,
        frames: int,
        motion: bool,
        augment: Augment | None = None,
        keep_mb: float = 0.0,
    ) -> None:
        self.clips, self.spoken, self.tiling, self.augment = clips, spoken, tiling, augment
        self.frames, self.motion = frames, motion
        self.broken = BrokenSamples(what="clips")
        self._decoded: Kept[Clip] = Kept(megabytes=keep_mb, size=_frame_bytes)

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, index: int, rng: random.Random) -> LabelledFrames | None:
        asked = self.clips[index]
        clip = self.broken.read(lambda: self._decoded.get(asked.clip, lambda: self._read(asked.clip)), id=asked.name)
        if clip is None:
            return None
        pictures = list(clip.frames)
        if self.augment is not None:
            draw = rng.getrandbits(32)
            pictures = [self.augment(picture, random.Random(draw)) for picture in pictures]
        if self.motion:
            pictures = neighbours_as_colours(pictures)
        labels = frame_labels(clip.seconds, self.spoken.get(asked.name, ()))
        words = tuple(question.answer for question in asked.questions[:-1])  # the last one asks for the sentence
        return LabelledFrames(tuple(self.tiling.tile(picture) for picture in pictures), labels, words)

    def _read(self, path: Path) -> Clip:
        return read_clip(path, count=self.frames, threads=1)


def _frame_bytes(clip: Clip) -> int:
    """Of frames in RGB."""
    return sum(3 * frame.width * frame.height for frame in clip.frames)


@torch.no_grad()
def measure_slots(task: FrameWordTask, data: LipFrames, *, batch_size: int = 8) -> dict[str, float]:
    """Accuracy of each of the six words, and of the frames."""
    device = task.out.weight.device
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(data), batch_size):
        drawn = (data.sample(i, random.Random(i)) for i in range(start, min(start + batch_size, len(data))))
        kept = [sample for sample in drawn if sample is not None]
        if not kept:
            continue
        batch: LabelledBatch = collate_frames(kept).to(device)
        logits_NV = task(batch)
        right["frame"] += (logits_NV.argmax(-1) == batch.labels).tolist()
        for slot, found in slot_accuracy(logits_NV, batch).items():
            right[slot] += found
    return {f"{name}_accuracy": sum(found) / len(found) for name, found in right.items()}


def pretrain_lip_encoder(config: LipReadingConfig) -> TrainResult:
    """Train, measure on the dev split, save the encoder; returns what the run did.

    Raises:
        UserError: anything the user can put right.
    """
    torch.manual_seed(config.train.seed)
    encoder = ImageEncoder(config.encoder)
    task = FrameWordTask(encoder, width=config.head_width)
    tiling = Tiling(encoder.tile_size, 1, True, encoder.pixel_mean, encoder.pixel_std)
    spoken = read_word_times(config.source / WORD_TIMES, words=WORDS)
    augment = Augment(flip=config.flip, crop_scale=config.crop_scale)
    data, dev = (
        LipFrames(
            read_clips(config.source, split=split),
            spoken,
            tiling,
            frames=config.frames,
            motion=config.motion,
            augment=augmented,
            keep_mb=config.keep_mb,
        )
        for split, augmented in (("train", augment), ("dev", None))
    )
    result = train(
        task=task,
        dataset=data,
        collate=collate_frames,
        config=config.train,
        run_dir=config.run_dir,
        resume=config.resume,
        evaluate=lambda step: measure_slots(task, dev),
        config_yaml=dump(config),
    )
    save_encoder(encoder, config.run_dir / "encoder")
    return result
